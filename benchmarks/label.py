"""Label a million stored rows with a thousand classes: `python -m benchmarks.label`.

The benchmark prints the time of labelling as a ratio to NumPy's bare product, and to the bare read of the same parts.
It also prints the peak memory of a process that labels a tenth of the rows, and of one that labels them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms.labels.batch import Classifier, label_batch
from clip_transforms.parts.manifest import make_folders
from clip_transforms.parts.writer import PartSettings, UnitWriter
from schemas.embeddings import embeddings_schema

PARTS, ROWS, K, D = 100, 10_000, 1_000, 512
BATCH = 1024

PEAK = """
import re, sys
from benchmarks.label import label_all
label_all(sys.argv[1], int(sys.argv[2]))
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"{os.cpu_count()} cores; {PARTS * ROWS:,} rows of d = {D}, {K:,} classes", flush=True)
        for part in range(PARTS):
            _write_part(folder, part)
        read = _timed(lambda: sum(len(batch) for batch in _batches(folder, PARTS)))
        product = _bare_product()
        label = _timed(lambda: label_all(folder, PARTS))
        print(f"bare read {read:.1f} s; bare product {product:.1f} s; labelling with reading and writing {label:.1f} s")
        both = label / (read + product)
        print(f"ratio to the product {label / product:.2f}, to the read {label / read:.2f}, to both {both:.2f}")
        few, many = (_peak(folder, parts) for parts in (PARTS // 10, PARTS))
        print(f"peak memory: {few:,.0f} MB for a tenth of the rows, {many:,.0f} MB for all, ratio {many / few:.3f}")


def label_all(folder: str, parts: int) -> None:
    """Label the first `parts` parts with random classes, in the way that `LabelEmbeddings` labels a part."""
    from clip_transforms.parts.writer import LabelsWriter

    weights = _unit(np.random.default_rng(1), K)
    classifier = Classifier(tuple(f"class {i}" for i in range(K)), weights, 100.0)
    for part in range(parts):
        with LabelsWriter(folder, f"{folder}/_temporary/run", "many", f"part-{part}") as labels:
            for batch in _part_batches(folder, part):
                labels.add(label_batch(batch, classifier, 5))
            labels.commit({})


def _batches(folder: str, parts: int):
    for part in range(parts):
        yield from _part_batches(folder, part)


def _part_batches(folder: str, part: int):
    parquet = pq.ParquetFile(f"{folder}/embeddings/part-{part}.parquet", pre_buffer=False, buffer_size=1 << 20)
    yield from parquet.iter_batches(BATCH, columns=["key", "shard", "row", "image_embedding"], use_threads=False)


def _bare_product() -> float:
    rng = np.random.default_rng(2)
    weights, rows = _unit(rng, K), _unit(rng, BATCH)
    rows @ weights.T
    return _timed(lambda: [rows @ weights.T for _ in range(PARTS * ROWS // BATCH)])


def _timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak(folder: str, parts: int) -> float:
    argv = [sys.executable, "-c", PEAK, folder, str(parts)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout)


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _write_part(folder: str, part: int) -> None:
    make_folders(folder, ["labels/many"])
    os.makedirs(f"{folder}/_temporary/run", exist_ok=True)
    schema = embeddings_schema()
    writer = UnitWriter(
        PartSettings(folder, f"{folder}/_temporary/run", schema, {"fingerprint": "f"}), f"part-{part}", {"shard": "s"}
    )
    rng = np.random.default_rng(part)
    empty = writer_rejects()
    for first in range(0, ROWS, BATCH):
        n = min(BATCH, ROWS - first)
        values = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * D, _unit(rng, n).ravel())
        columns = {
            "key": pa.array([str(first + i) for i in range(n)]),
            "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), ["s"]),
            "row": pa.array(np.arange(first, first + n)),
            "image_embedding": values,
        }
        arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in schema]
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema), {}, empty, {"image": 0, "caption": n})
    writer.commit(ROWS, {})
    writer.__exit__()


def writer_rejects() -> pa.RecordBatch:
    """Return an empty batch of rejects."""
    from schemas.rejects import rejects_schema

    return pa.RecordBatch.from_pylist([], schema=rejects_schema())


if __name__ == "__main__":
    main()
