"""Evaluate at the sizes of usual benchmarks: `python -m benchmarks.evaluate`.

The benchmark prints two ratios. Retrieval with five captions an image, on 5,000 images of 512 values: seconds to those
of the two bare float32 products, and the peak memory. A linear probe on 50,000 embeddings of 512 values and 100
classes: seconds to those of a single fit with the C that it chooses, and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from benchmarks.datasets import write_rows
from benchmarks.machine import print_facts
from clip_transforms import Dataset
from clip_transforms.metrics.probe import Split, fit
from schemas.captions import captions_schema

IMAGES, CAPTIONS, D = 5_000, 5, 512
SAMPLES, CLASSES = 50_000, 100
ROWS_A_PART = 5_000
RUN = """
import json, re, sys, time
from clip_transforms import evaluate_embeddings
start = time.perf_counter()
found = evaluate_embeddings(*sys.argv[1:3], **json.loads(sys.argv[3]))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([time.perf_counter() - start, peak, found]))
"""


def main(argv: Sequence[str]) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__.split("\n")[0]).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print_facts()
        _retrieval(Path(folder))
        _probe(Path(folder))


def _retrieval(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = _unit(rng.normal(size=(IMAGES, D)))
    captions = _unit(0.2 * images.repeat(CAPTIONS, 0) + _unit(rng.normal(size=(IMAGES * CAPTIONS, D))))
    parts = [{"image_embedding": images[i : i + ROWS_A_PART]} for i in range(0, IMAGES, ROWS_A_PART)]
    out = write_rows(folder / "pairs", parts)
    for number, part in enumerate(Dataset.open(out).parts):
        first = number * ROWS_A_PART
        _write_captions(out, part, number, captions[CAPTIONS * first : CAPTIONS * (first + ROWS_A_PART)])
    seconds, peak, found = _run(out, folder / "retrieval", measure="retrieval")
    start = time.perf_counter()
    for first in range(0, len(captions), 1024):
        captions[first : first + 1024] @ images.T
        images @ captions[first : first + 1024].T
    bare = time.perf_counter() - start
    recall = found["retrieval"]["caption_to_image"]["recall@1"]
    print(
        f"retrieval, {IMAGES:,} images with {CAPTIONS} captions each: {seconds:.1f} s, {seconds / bare:.1f} of the "
        f"bare products, peak {peak:,.0f} MB, recall@1 {recall:.3f}",
        flush=True,
    )


def _probe(folder: Path) -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(0, CLASSES, SAMPLES)
    vectors = _unit(0.28 * _unit(rng.normal(size=(CLASSES, D)))[classes] + _unit(rng.normal(size=(SAMPLES, D))))
    parts = [
        {"image_embedding": vectors[i : i + ROWS_A_PART], "cls": classes[i : i + ROWS_A_PART]}
        for i in range(0, SAMPLES, ROWS_A_PART)
    ]
    out = write_rows(folder / "samples", parts, columns=["cls:int32"])
    seconds, peak, found = _run(out, folder / "probe", measure="probe")
    of = found["probe"]
    train = of["train"] + of["validation"]
    start = time.perf_counter()
    with threadpool_limits(1, "blas"):
        fit(Split(vectors[:train].astype(np.float64), classes[:train]), of["c"])
    one = time.perf_counter() - start
    print(
        f"probe, {SAMPLES:,} × {D}, {CLASSES} classes: {seconds:.0f} s, {seconds / one:.1f} of one fit, peak "
        f"{peak:,.0f} MB, C {of['c']:.3g}, accuracy {of['acc1']:.4f}"
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _run(out: str, evaluation: Path, **asked: str) -> tuple[float, float, dict]:
    """Evaluate in a process of its own; seconds, peak memory in MB, and the metrics."""
    argv = [sys.executable, "-c", RUN, out, str(evaluation), json.dumps(asked)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True)
    return tuple(json.loads(done.stdout))


def _write_captions(out: str, part: str, number: int, captions: np.ndarray) -> None:
    """Write all captions of a part, as `embed --captions all` does."""
    footer = pq.ParquetFile(Path(out) / "embeddings" / f"{part}.parquet").metadata.metadata[b"clip"]
    n = len(captions)
    rows, index = np.divmod(np.arange(n), CAPTIONS)
    shard = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int32()), [f"/shards/{number}.tar"])
    embeddings = pa.ListArray.from_arrays(np.arange(0, n * D + 1, D, dtype=np.int32), captions.reshape(-1))
    columns = [
        [f"{row:06d}" for row in rows],
        shard,
        rows,
        index,
        ["x"] * n,
        [3] * n,
        [False] * n,
        embeddings,
        [0.1] * n,
    ]
    schema = captions_schema()
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    (Path(out) / "captions").mkdir(exist_ok=True)
    with pq.ParquetWriter(Path(out) / "captions" / f"{part}.parquet", schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({b"clip": footer})


if __name__ == "__main__":
    main(sys.argv[1:])
