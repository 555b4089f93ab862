"""Who stays of a group of duplicates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEEP = ("score", "pixels", "first")
_SCORE, _PIXELS = "clip_score", "pixels"
_RANKS = {"score": (_SCORE, _PIXELS), "pixels": (_PIXELS, _SCORE), "first": ()}  # largest first; what decides first


def keepers(rows: pa.Table, groups: np.ndarray, keep: str = "score") -> np.ndarray:
    """Choose the row of each group that stays.

    The largest value stays; null and NaN come after every value. Of equal rows the first (`shard`, `row`) stays.

    Args:
        rows: `shard`, `row`, `clip_score` and `pixels` of n rows; (`shard`, `row`) is unique.
        groups: the group of each row, int64 [n].
        keep: one of KEEP: `score`, then `pixels`; `pixels`, then `score`; or `first`, neither.
    Returns:
        bool [n]: true once in each group.
    """
    shards = rows["shard"].combine_chunks() if isinstance(rows["shard"], pa.ChunkedArray) else rows["shard"]
    names = pc.rank(shards.cast(pa.string()), sort_keys="ascending", tiebreaker="dense").to_numpy()
    ranks = [_descending(rows[name]) for name in _RANKS[keep]]
    order = np.lexsort([rows["row"].to_numpy(), names, *reversed(ranks), groups])
    kept = np.zeros(len(groups), bool)
    kept[order[np.flatnonzero(np.diff(groups[order], prepend=-1))]] = True
    return kept


def _descending(values: pa.ChunkedArray) -> np.ndarray:
    """Return numbers that sort as the values do from the largest down, null and NaN last."""
    numbers = -pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(numbers), np.inf, numbers)
