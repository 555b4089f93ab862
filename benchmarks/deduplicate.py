"""Find planted near copies among 200,000 vectors: `python -m benchmarks.deduplicate`.

A tenth of the rows are copies of others at cosines from 0.90 to 0.999. The benchmark prints the recall and the
precision of the pairs at or above 0.95, the CPU seconds of `deduplicate_embeddings` with all its reading and writing as
a ratio to all pairs by a blocked float32 product, and the peak memory. It does so for rows in clusters, as embeddings
of pictures lie, and for rows in all directions alike, which no blocks fit. Everything runs on one thread, since a
library's threads that wait for each other would count as CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from benchmarks.datasets import write_rows
from benchmarks.machine import print_facts

ROWS, PART_ROWS, D, THRESHOLD = 200_000, 10_000, 512, 0.95
CLUSTERS, TILE, TILES = 2_000, 2_048, 200
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
DEDUPLICATE = """
import json, re, resource, sys
from clip_transforms import deduplicate_embeddings
before = resource.getrusage(resource.RUSAGE_SELF)
content = deduplicate_embeddings(sys.argv[1], sys.argv[2], by="image", threshold=float(sys.argv[3]))
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"cpu": cpu, "peak": peak, **content["duplicates"]}))
"""
PRODUCT = """
import resource, sys
import numpy as np
tile, d, tiles, threshold = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
rng = np.random.default_rng(0)
rows = rng.standard_normal((8 * tile, d), np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
before = resource.getrusage(resource.RUSAGE_SELF)
for number in range(tiles):
    a, b = number % 8 * tile, number // 8 % 8 * tile
    np.flatnonzero(rows[a : a + tile] @ rows[b : b + tile].T >= threshold)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="number of rows, in parts of 10,000 (%(default)s)")
    rows = parser.parse_args(argv).rows
    print_facts()
    tiles = (rows / TILE) ** 2 / 2
    product = float(_child(PRODUCT, TILE, D, TILES, THRESHOLD)) * tiles / TILES
    print(
        f"{rows:,} rows of d = {D}; all pairs by a blocked float32 product: {product:,.0f} CPU s (from {TILES} tiles)"
    )
    for kind in ("clusters", "alike"):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(f"{folder}/out", list(_parts(rows, kind)))
            found = json.loads(_child(DEDUPLICATE, f"{folder}/out", f"{folder}/kept", THRESHOLD))
            recall, precision, pairs = _quality(folder, rows, kind)
        print(
            f"{kind}: recall {recall:.5f} of {pairs:,} pairs, precision {precision:.5f}, {found['cpu']:.1f} CPU s, "
            f"ratio to the product {found['cpu'] / product:.3f} (asked: 0.100); {found['blocks']:,} blocks, margin "
            f"{found['margin']:.4f}, expected recall {found['recall']:.4f}; peak memory {found['peak']:,.0f} MB",
            flush=True,
        )


def _child(code: str, *argv: object) -> str:
    environment = {**os.environ, **ONE_THREAD}
    command = [sys.executable, "-c", code, *map(str, argv)]
    cwd = Path(__file__).parents[1]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment).stdout


def _parts(rows: int, kind: str) -> Iterator[dict]:
    """Yield parts of PART_ROWS rows: the first nine tenths are new, the others near copies of them."""
    for number in range(rows // PART_ROWS):
        vectors, _ = part(number, kind)
        yield {"image_embedding": vectors, "d": D}


def part(number: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a part, float32 [n, d], and the place of the original of each copy."""
    rng = np.random.default_rng(number)
    new = PART_ROWS * 9 // 10
    vectors = rng.standard_normal((PART_ROWS, D), np.float32)
    if kind == "clusters":
        centres = np.random.default_rng(10**6).standard_normal((CLUSTERS, D), np.float32)
        common = np.random.default_rng(10**6 + 1).standard_normal(D, np.float32)  # any two CLIP embeddings are alike
        vectors = 0.8 * vectors + centres[rng.integers(0, CLUSTERS, PART_ROWS)] + common
    vectors = _unit(vectors)
    originals = rng.choice(new, PART_ROWS - new, replace=False)
    source, away = vectors[originals], rng.standard_normal((len(originals), D), np.float32)
    away = _unit(away - (away * source).sum(axis=1, keepdims=True) * source)
    cosine = rng.uniform(0.90, 0.999, (len(originals), 1)).astype(np.float32)
    vectors[new:] = cosine * source + np.sqrt(1 - cosine**2) * away
    return vectors, originals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _quality(folder: str, rows: int, kind: str) -> tuple[float, float, int]:
    """Return recall and precision of the pairs at or above the threshold, and their number."""
    table = ds.dataset(f"{folder}/kept/groups").to_table(columns=["group", "shard", "row"]).sort_by("group")
    places = [int(s.split("/")[-1][:-4]) * PART_ROWS + r for s, r in zip(*_lists(table, "shard", "row"), strict=True)]
    groups: dict[int, list[int]] = {}
    for group, place in zip(table.column("group").to_pylist(), places, strict=True):
        groups.setdefault(group, []).append(place)
    found = {tuple(sorted(group)) for group in groups.values()}  # a planted group is one row and its copy
    planted = set()
    for number in range(rows // PART_ROWS):
        vectors, originals = part(number, kind)
        copies = np.arange(PART_ROWS - len(originals), PART_ROWS)
        a, b = vectors[originals].astype(np.float64), vectors[copies].astype(np.float64)
        cosines = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        near = cosines.astype(np.float32) >= np.float32(THRESHOLD)
        planted |= {
            (number * PART_ROWS + int(i), number * PART_ROWS + int(j))
            for i, j in zip(originals[near], copies[near], strict=True)
        }
    return len(found & planted) / len(planted), len(found & planted) / len(found), len(planted)


def _lists(table, *names: str) -> list[list]:
    return [table.column(name).to_pylist() for name in names]


if __name__ == "__main__":
    main()
