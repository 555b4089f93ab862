"""The rows of a part that are compared, and their vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.parts.reader import read_table
from clip_transforms.select.cosines import unit
from clip_transforms.select.duplicates import Duplicates
from clip_transforms.select.row_ids import row_ids


@dataclasses.dataclass(frozen=True)
class ComparedRows:
    """Rows of one part.

    Attributes:
        table: the columns that were asked for, of n rows.
        ids: int64 [n].
        values: float16 or float32 [n, m, d] as stored, if rows are compared by vectors; none of length 0, all finite.
        left_out: rows of the selection that cannot be compared: they lack the file's hash, or a vector.
        shard: URI of the part's shard; empty if the part has no rows, or the column was not asked for.
    """

    table: pa.Table
    ids: np.ndarray
    values: np.ndarray
    left_out: int
    shard: str


def compared_rows(dataset: str, part: str, place: int, rows: Duplicates, also: Sequence[str] = ()) -> ComparedRows:
    """Read the rows of a part that are compared.

    Args:
        dataset: URI of the dataset.
        part: name of the part.
        place: its place among the parts.
        rows: the settings.
        also: columns to read besides.
    """
    columns = [f"{modality}_embedding" for modality in rows.modalities] or ["image_sha256"]
    table = read_table(dataset, part, sorted({*columns, "row", *also}))
    selected = rows.selection.mask(part, table.column("row"))
    stays = selected.copy()
    for name in columns:
        stays &= table.column(name).is_valid().to_numpy()
    places = np.flatnonzero(stays)
    if rows.modalities:
        values = np.stack([_matrix(table.column(name).take(places)) for name in columns], axis=1)
        usable = np.isfinite(values).all(axis=(1, 2)) & (values != 0).any(axis=2).all(axis=1)
        places, values = places[usable], values[usable]
    else:
        values = np.empty((len(places), 0, 0), np.float32)
    others = table.drop_columns(columns) if rows.modalities else table
    left_out = int(np.count_nonzero(selected)) - len(places)
    shard = table.column("shard")[0].as_py() if "shard" in also and table.num_rows else ""
    return ComparedRows(others.take(places), row_ids(place, places), values, left_out, shard)


def joined(values: np.ndarray) -> np.ndarray:
    """Return the m vectors of each row as one of length 1, float32 [n, m · d]. Its cosine is the mean of theirs."""
    n, m, d = values.shape
    return (unit(values) / np.float32(np.sqrt(m))).reshape(n, m * d)


def pixels(table: pa.Table) -> pa.ChunkedArray:
    """Return the number of pixels of each row's image, int64; null where it is not known."""
    return pc.multiply(table.column("width").cast(pa.int64()), table.column("height").cast(pa.int64()))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return embeddings without nulls as float16 or float32 [n, d]."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *flat]).reshape(
        -1, column.type.list_size
    )
