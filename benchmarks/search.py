"""Search a million vectors: `python -m benchmarks.search [--rows N]`.

The benchmark prints ratios of seconds, of runs that take turns in one process: one query to the bare read of the
column by Arrow, and many queries (`--queries`) to that read and the bare float32 product together, and to the product
alone. It prints the peak memory of each, of a process of its own. With `--index` it makes indexes of vectors in
clusters, as those of pictures lie, and of vectors in all directions alike, and prints the time of a query as a ratio to
that of a flat index.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.datasets import write_rows
from benchmarks.machine import interleaved, median_ratio, print_facts
from clip_transforms import index_embeddings, search_embeddings
from clip_transforms.select.vector_index import open_index, search_index
from clip_transforms.workers.machine import cores

PART_ROWS, D, MANY, ROUNDS, CLUSTERS = 10_000, 512, 1_000, 3, 2_000
PEAK = """
import re, sys
from clip_transforms import search_embeddings
search_embeddings(sys.argv[1], queries=sys.argv[2])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows, in parts of 10,000 (%(default)s)")
    parser.add_argument("--queries", type=int, default=MANY, help="queries at once, beside one alone (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds that are timed (%(default)s)")
    parser.add_argument("--index", action="store_true", help="measure indexes instead")
    options = parser.parse_args(argv)
    print_facts()
    with tempfile.TemporaryDirectory() as folder:
        if options.index:
            _indexes(Path(folder), options.rows)
        else:
            _exact(Path(folder), options.rows, options.queries, options.rounds)


def _exact(folder: Path, rows: int, many: int, rounds: int) -> None:
    dataset = write_rows(folder / "out", _parts(rows, "alike"))
    block = next(iter(_parts(PART_ROWS, "alike")))["image_embedding"]
    files = {count: _queries(folder, count) for count in (1, many)}
    queries = np.array(pq.read_table(files[many])["embedding"].to_pylist(), np.float32)
    seconds = interleaved(
        rounds,
        read=lambda: _read(dataset),
        product=lambda: [queries @ block.T for _ in range(-(-rows // PART_ROWS))],
        one=lambda: search_embeddings(dataset, queries=files[1]),
        many=lambda: search_embeddings(dataset, queries=files[many]),
    )
    both = [a + b for a, b in zip(seconds["read"], seconds["product"], strict=True)]
    print(
        f"{rows:,} rows of d = {D}: one query {min(seconds['one']):.2f} s, ratio to the bare read "
        f"{median_ratio(seconds['one'], seconds['read']):.2f}; {many:,} queries {min(seconds['many']):.2f} s, ratio to "
        f"the bare read and product {median_ratio(seconds['many'], both):.2f}, to the product alone "
        f"{median_ratio(seconds['many'], seconds['product']):.2f} (read {min(seconds['read']):.2f} s, product "
        f"{min(seconds['product']):.2f} s)",
        flush=True,
    )
    for count, file in files.items():
        print(f"peak memory of a search for {count:,}: {_peak(dataset, file):,.0f} MB", flush=True)


def _indexes(folder: Path, rows: int) -> None:
    for kind in ("clusters", "alike"):
        dataset = write_rows(folder / kind, _parts(rows, kind))
        queries = next(iter(_parts(PART_ROWS, kind)))["image_embedding"][:100]
        each = {}
        for index in ("flat", "ivf"):
            place = folder / f"{kind}-{index}"
            start = time.perf_counter()
            record = index_embeddings(dataset, place, kind=index)
            made, opened = time.perf_counter() - start, open_index(str(place / "index.faiss"))
            search_index(opened, queries, 10, record["effort"])
            start = time.perf_counter()
            for query in queries:
                search_index(opened, query[None], 10, record["effort"])
            each[index] = (time.perf_counter() - start) / len(queries)
            print(
                f"{rows:,} {kind}, {index}: made in {made:.0f} s, recall@10 {record['recall_at_10']['image']:.4f}, "
                f"{1000 * each[index]:.2f} ms a query, ratio to flat {each[index] / each['flat']:.3f}",
                flush=True,
            )


def _parts(rows: int, kind: str) -> Iterator[dict]:
    """Yield parts. Their vectors are those of one part with other signs, which costs little, or lie in clusters."""
    rng = np.random.default_rng(0)
    first = _unit(rng.standard_normal((PART_ROWS, D), np.float32))
    centres = rng.standard_normal((CLUSTERS, D), np.float32)
    for _ in range(-(-rows // PART_ROWS)):
        vectors = first * rng.choice(np.float32([-1, 1]), D)
        if kind == "clusters":
            vectors = _unit(centres[rng.integers(0, CLUSTERS, PART_ROWS)] + 0.8 * np.sqrt(np.float32(D)) * vectors)
        yield {"image_embedding": vectors, "d": D}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _queries(folder: Path, count: int) -> str:
    queries = _unit(np.random.default_rng(1).standard_normal((count, D), np.float32))
    pq.write_table(pa.table({"embedding": list(queries)}), path := folder / f"{count}.parquet")
    return str(path)


def _read(dataset: str) -> None:
    """Read the column with Arrow, in as many threads as there are cores."""

    def read(path: Path) -> None:
        pq.ParquetFile(path).read(["image_embedding"], use_threads=False)

    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        list(pool.map(read, sorted(Path(dataset, "embeddings").iterdir())))


def _peak(dataset: str, queries: str) -> float:
    command = [sys.executable, "-c", PEAK, dataset, queries]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
