"""Embeddings as they are stored: their precision, their Arrow lists, and the cosine of two."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

NOT_FINITE = ("not finite", "the model's embedding has NaN or infinite values")


def in_stored_precision(embeddings: np.ndarray, field: pa.Field) -> np.ndarray:
    """Convert float32 embeddings [n, d] to the precision of the column that stores them."""
    # Arrow's to_pandas_dtype would give the type directly, but needs pandas.
    return embeddings.astype(np.float16 if pa.types.is_float16(field.type.value_type) else np.float32)


def lists(values: np.ndarray) -> pa.ListArray:
    """Return the rows of an array [m, d] as m Arrow lists."""
    m, d = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(m + 1) * d, pa.int32()), pa.array(values.ravel()))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, both [n, d] as stored; float32 [n]."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
