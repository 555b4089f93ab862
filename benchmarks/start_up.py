"""Measure the time that a run takes before its work starts: `python -m benchmarks.start_up`.

The benchmark times four things: from the start of the process to the first embedded batch of pictures, using ViT-B/32
with random weights from a file in the page cache; a process that does only the imports of such a run; `--dry_run`; and
a run over a thousand finished units, with the demo model and a taxonomy.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import ROOT, embed_argv, in_turn, seconds_of
from benchmarks.inputs import model_flags, photographs, samples, write_tar, write_tars
from benchmarks.machine import print_facts

BATCH = 32
IMPORTS = (
    "import pipelines.embed, clip_transforms.clip.checkpoints, clip_transforms.engine.decode, "
    "clip_transforms.engine.rows, clip_transforms.engine.forward"
)
# Watches the run's progress counters from a thread of its own, and imports nothing that the run does not import.
FIRST = """
import sys, threading, time
first = []
def watch():
    while not first:
        done = getattr(sys.modules.get("clip_transforms.embed_shards"), "PROGRESS", None)
        if done and done["samples"]:
            first.append(time.monotonic())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from pipelines import embed
code = embed.main(sys.argv[1:])
print(first[0])
sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", help="published name, or demo (%(default)s)")
    parser.add_argument(
        "--units", type=int, default=1_000, help="number of finished units, of 2 samples each (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds (%(default)s)")
    options = parser.parse_args(argv)
    print_facts()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _start(root, options.model, options.rounds)
        _resume(root, options.units, options.rounds)


def _start(root: Path, model: str, rounds: int) -> None:
    tar = write_tar(root / "one.tar", samples(BATCH, photographs(BATCH, 256, 256)))
    flags, count = model_flags(root, model), iter(range(1_000_000))
    found = in_turn(
        rounds,
        first=lambda: _first_batch(embed_argv(tar, root / f"out-{next(count)}", flags)[3:]),
        imports=lambda: seconds_of([sys.executable, "-c", IMPORTS]),
        torch=lambda: seconds_of([sys.executable, "-c", "import torch"]),
        dry_run=lambda: seconds_of([*embed_argv(tar, root / "never", flags), "--dry_run"]),
    )
    first, imports, torch, dry_run = (statistics.median(found[name]) for name in found)
    print(
        f"{model}: first embedded batch of {BATCH} after {first:.2f} s, of which imports {imports:.2f} s "
        f"({imports / first:.2f}; torch alone {torch:.2f} s); --dry_run {dry_run:.2f} s; medians of {rounds}",
        flush=True,
    )


def _first_batch(argv: Sequence[str]) -> float:
    start = time.monotonic()  # all processes of a machine share this clock
    done = subprocess.run([sys.executable, "-c", FIRST, *argv], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return float(done.stdout.splitlines()[-1]) - start


def _resume(root: Path, units: int, rounds: int) -> None:
    tars = write_tars(root / "units", units, 2, photographs(2, 64, 64))
    (root / "words.txt").write_text("star\nheart\n")
    argv = embed_argv(tars, root / "finished", ["--model", "demo", "--taxonomy", str(root / "words.txt")])
    made = seconds_of(argv)
    cpu: list[float] = []
    found = in_turn(
        rounds,
        resumed=lambda: _with_cpu(argv, cpu),
        imports=lambda: seconds_of([sys.executable, "-c", "import pipelines.embed"]),
    )
    resumed, imports = (statistics.median(found[name]) for name in found)
    print(
        f"demo: {units:,} units made in {made:.1f} s; a run over them, finished, {resumed:.2f} s "
        f"({min(found['resumed']):.2f} to {max(found['resumed']):.2f}; {statistics.median(cpu):.2f} s of a core), "
        f"of which imports {imports:.2f} s; medians of {rounds}",
        flush=True,
    )


def _with_cpu(argv: Sequence[str], cpu: list[float]) -> float:
    """Return the seconds of a command, and append its CPU seconds, which other load hardly changes, to `cpu`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = seconds_of(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return seconds


if __name__ == "__main__":
    main()
