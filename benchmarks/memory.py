"""Peak memory of the embed command at ten times the input against one time: `python -m benchmarks.memory`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms.demo.scenes import draw_scene, encode_scene, random_scene

SAMPLES = 4_000  # enough that what waits for the model is at its bound in the smaller run too

# VmHWM, since ru_maxrss of a child begins with what its parent held.
PEAK = """
import re, sys
from pipelines import embed
assert embed.main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, images = Path(folder), list(_images(200))
        print(f"{os.cpu_count()} cores; {SAMPLES:,} and {10 * SAMPLES:,} samples, demo model, one process")
        for name, write in (("one tar", write_tar), ("one Parquet file, one row group", _parquet), ("folder", _folder)):
            peaks = []
            for times in (1, 10):
                source = write(root / f"{name[:9]}-{times}".replace(" ", "-"), images, times * SAMPLES)
                peaks.append(_peak(source, root / f"out-{name[:9]}-{times}".replace(" ", "-")))
            print(
                f"{name}: {peaks[0]:,.0f} MB, ten times the input {peaks[1]:,.0f} MB, ratio {peaks[1] / peaks[0]:.3f}"
            )


def _peak(source: Path, output: Path) -> float:
    """Peak resident megabytes of one run of the command."""
    argv = ["--input", source, "--output", output, "--model", "demo"]
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, argv)], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def _images(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield encode_scene(draw_scene(random_scene(rng), rng, side=256))


def write_tar(path: Path, images: list[bytes], count: int) -> Path:
    """A tar of `count` samples, with a caption each."""
    path = path.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            for name, data in ((f"{i:08d}.jpg", images[i % len(images)]), (f"{i:08d}.txt", f"a red star {i}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _parquet(path: Path, images: list[bytes], count: int) -> Path:
    path = path.with_suffix(".parquet")
    rows = [images[i % len(images)] for i in range(count)]
    table = pa.table({"image": pa.array(rows, pa.binary()), "caption": [f"a red star {i}" for i in range(count)]})
    pq.write_table(table, path, row_group_size=count, use_dictionary=["caption"])
    return path


def _folder(path: Path, images: list[bytes], count: int) -> Path:
    path.mkdir()
    for i in range(count):
        (path / f"{i:08d}.jpg").write_bytes(images[i % len(images)])
        (path / f"{i:08d}.txt").write_text(f"a red star {i}")
    return path


if __name__ == "__main__":
    main()
