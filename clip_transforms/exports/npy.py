"""Write embeddings as one matrix a modality, and the rows that they belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.rows import ExportRows, matrix_of
from clip_transforms.exports.vectors import NpyFile, RowsFile, new_file, plain

FOLDER = "npy"
ROWS = "rows.parquet"
COLUMNS = ("key", "shard", "row", "caption", "clip_score")


def write_npy(
    rows: ExportRows,
    parts: Sequence[tuple[str, int]],
    shape: tuple[int, np.dtype],
    modalities: Sequence[str],
    places: tuple[str, str],
) -> None:
    """Write `<modality>_embeddings.npy` and `rows.parquet`, whose row k belongs to row k of each matrix.

    Args:
        rows: the rows that are taken; all have an embedding of each modality.
        parts: (part, number of its rows that are taken), in the dataset's order.
        shape: the number of values of an embedding, and their type, float32 or float16.
        modalities: `image`, `caption` or both.
        places: URI of the export, and of the run's temporary folder.
    """
    output, scratch = places
    total, (d, dtype) = sum(count for _, count in parts), shape
    with contextlib.ExitStack() as files:
        listed = files.enter_context(RowsFile(files.enter_context(new_file(_uri(output, ROWS), scratch))))
        vectors = {}
        for modality in modalities:
            local = files.enter_context(new_file(_uri(output, f"{modality}_embeddings.npy"), scratch))
            vectors[modality] = files.enter_context(NpyFile(local, (total, d), dtype))
        for part, _ in parts:
            table = rows.table(part, [*COLUMNS, *(f"{modality}_embedding" for modality in modalities)])
            for modality, file in vectors.items():
                file.add(matrix_of(table.column(f"{modality}_embedding")))
            listed.add(plain(table.select(COLUMNS)))
        if not parts:
            listed.add(no_rows())


def no_rows() -> pa.Table:
    """Return a table of COLUMNS without rows."""
    types = (pa.string(), pa.string(), pa.int64(), pa.string(), pa.float32())
    return pa.table({name: pa.array([], type_) for name, type_ in zip(COLUMNS, types, strict=True)})


def _uri(output: str, name: str) -> str:
    return storage.join(output, FOLDER, name)
