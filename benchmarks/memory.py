"""Compare the embed command's peak memory for an input and for ten times that input: `python -m benchmarks.memory`.

With `--huge`, measure instead the peak for a Parquet file with a single row group of a gigabyte, beyond the peak of a
run on a few samples, which is the size of the model and the program.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.commands import ROOT
from benchmarks.inputs import model_flags, photographs, samples, write_folder, write_parquet, write_tar
from benchmarks.machine import print_facts

TIMES, BATCH = 10, 32

# This reads VmHWM, since a child's ru_maxrss starts at the size of its parent.
PEAK = """
import re, sys
from pipelines import embed
assert embed.main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="published name, with random weights, or %(default)s")
    # Enough that the queue before the model is full in the smaller run too.
    parser.add_argument("--samples", type=int, default=4_000, help="samples in the smaller input (%(default)s)")
    parser.add_argument(
        "--huge",
        type=int,
        nargs="?",
        const=1_000,
        metavar="MB",
        help="measure one row group of MB megabytes instead (%(const)s if MB is omitted)",
    )
    options = parser.parse_args(argv)
    print_facts()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = model_flags(root, options.model)
        if options.huge:
            _huge(root, options.huge, model)
            return
        print(f"{options.model}, {options.samples:,} and {TIMES * options.samples:,} samples, one process")
        for name, write in FORMATS.items():
            with tempfile.TemporaryDirectory(dir=root) as of_format:
                _ten_times(Path(of_format), name, write, options.samples, model)


def _ten_times(root: Path, name: str, write: Callable, count: int, model: Sequence[str]) -> None:
    images, peaks = photographs(64, 256, 256), []
    for times in (1, TIMES):
        source = write(root / f"input-{times}", times * count, images)
        peaks.append(peak_of(source, root / f"out-{times}", model))
    print(
        f"{name}: {peaks[0]:,.0f} MB, {TIMES} times the input {peaks[1]:,.0f} MB, ratio {peaks[1] / peaks[0]:.3f}",
        flush=True,
    )


def _huge(root: Path, megabytes: int, model: Sequence[str]) -> None:
    images = photographs(64, 640, 480)
    count = round(megabytes * 1e6 / (sum(map(len, images)) / len(images)))
    few, huge = (write_parquet(root / f"{n}.parquet", samples(n, images), n) for n in (BATCH, max(count, BATCH + 1)))
    alone, peak = (peak_of(source, root / f"out-{source.stem}", model) for source in (few, huge))
    print(
        f"one row group of {huge.stat().st_size / 1e6:,.0f} MB, {count:,} samples: {peak:,.0f} MB at the peak, "
        f"{peak - alone:,.0f} MB over the model and the program ({alone:,.0f} MB, from a run on {BATCH} samples)"
    )


def peak_of(source: Path, output: Path, model: Sequence[str]) -> float:
    """Run the command and return its peak resident megabytes."""
    argv = [sys.executable, "-c", PEAK, "--input", str(source), "--output", str(output), *model]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.splitlines()[-1])


def _tar(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_tar(path.with_suffix(".tar"), samples(count, images))


def _parquet(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_parquet(path.with_suffix(".parquet"), samples(count, images), row_group=count)


def _folder(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_folder(path, samples(count, images))


FORMATS = {"one tar": _tar, "one Parquet file, one row group": _parquet, "folder": _folder}


if __name__ == "__main__":
    main()
