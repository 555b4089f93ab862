"""Numbers for the rows of a dataset, in its order."""

from __future__ import annotations

import numpy as np

_PART = np.int64(1) << 32  # the most rows of a part


def row_ids(part: int, rows: np.ndarray) -> np.ndarray:
    """Return ids that sort as the dataset does: int64.

    Args:
        part: place of the part among the dataset's parts.
        rows: places of rows in the part.
    """
    return part * _PART + rows.astype(np.int64)


def parts_and_rows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the parts, and of the rows in them."""
    return ids // _PART, ids % _PART
