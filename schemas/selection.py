"""Define a selection: which rows of a dataset are kept, a part for each part of the dataset."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described

_BY = "the value that the row was ranked by: float32, float64, int64 or uint64; only if rows were ranked"


def selection_schema(by: pa.DataType | None = None) -> pa.Schema:
    """Return the schema of `kept/parts/*.parquet`.

    Args:
        by: type of the values that rows were ranked by; None if they were not ranked.
    """
    ranked = [] if by is None else [described("by", by, _BY, False)]
    return pa.schema([KEY, SHARD, ROW, *ranked])
