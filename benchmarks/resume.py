"""A run over a thousand finished units, start to end: `python -m benchmarks.resume`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.memory import write_tar
from clip_transforms.demo.scenes import draw_scene, encode_scene, random_scene

UNITS, RUNS = 1_000, 5


def main() -> None:
    rng = np.random.default_rng(0)
    image = encode_scene(draw_scene(random_scene(rng), rng))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(UNITS):
            write_tar(root / f"{i:05d}", [image], 2)
        (root / "words.txt").write_text("star\nheart\n")
        argv = [sys.executable, "-m", "pipelines.embed", "--input", f"{root}/*.tar", "--output", f"{root}/out"]
        argv += ["--model", "demo", "--taxonomy", f"{root}/words.txt"]
        print(f"{os.cpu_count()} cores; {UNITS:,} units of 2 samples, one taxonomy, demo model")
        print(f"first run: {_seconds(argv):.1f} s")
        resumed = [_seconds(argv) for _ in range(RUNS)]
        imports = [_seconds([sys.executable, "-c", "import pipelines.embed"]) for _ in range(RUNS)]
        median, least, most = statistics.median(resumed), min(resumed), max(resumed)
        print(
            f"over finished units: median {median:.2f} s of {RUNS} ({least:.2f} to {most:.2f}); CPU {_cpu(argv):.2f} s"
        )
        print(f"of that imports: median {statistics.median(imports):.2f} s")


def _cpu(argv: list[str]) -> float:
    """User and system seconds of a run: what is left of the figure where other processes use the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _seconds(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _seconds(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
