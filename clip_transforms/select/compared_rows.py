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
        values: float16 or float32 [n, m, d] as stored, if rows are compared by vectors; their lengths are neither 0 nor
            infinite nor NaN, as float32.
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
    values = np.empty((len(places), 0, 0), np.float32)
    if rows.modalities:
        values = _matrices([table.column(name) for name in columns], stays)
        squares = np.einsum("nmd,nmd->nm", values, values, dtype=np.float32, casting="same_kind")
        usable = ((squares > 0) & (squares < np.inf)).all(axis=1)
        if not usable.all():
            places, values = places[usable], values[usable]
    others = table.select([name for name in table.column_names if not rows.modalities or name not in columns])
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


def _matrices(columns: Sequence[pa.ChunkedArray], stays: np.ndarray) -> np.ndarray:
    """Return the embeddings of some rows as float16 or float32 [n, m, d]; none of them is null."""
    found = []
    for column in columns:
        some = column if stays.all() else column.filter(pa.array(stays))
        flat = [chunk.flatten().to_numpy() for chunk in some.chunks]
        # Arrow's to_pandas_dtype would give the type directly, but needs pandas.
        empty = np.empty(0, np.float16 if pa.types.is_float16(some.type.value_type) else np.float32)
        values = flat[0] if len(flat) == 1 else np.concatenate([empty, *flat])
        found.append(values.reshape(-1, some.type.list_size))
    return found[0][:, None] if len(found) == 1 else np.stack(found, axis=1)
