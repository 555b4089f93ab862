"""The rows of a matrix in memory that are nearest to one query: exact, and the same rows that a search finds."""

from __future__ import annotations

import numpy as np

from clip_transforms.select.cosines import dots, slack

# Place of the URI of a row's shard among all, sorted, and its place in the shard.
NAME = np.dtype([("shard", "<i4"), ("row", "<i8")])
_PAIRS = 2_048  # rows at once where they must be copied
_SPARSE = 8  # if fewer than one row in so many may be found, only these are multiplied


def nearest(
    query: np.ndarray, matrix: np.ndarray, allowed: np.ndarray, longest: float, k: int, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows. As in `TopK`, a quick product proposes rows and a float64 sum decides.

    Args:
        query: float32 [d].
        matrix: float32 [n, d]; it may be mapped into memory.
        allowed: bool [n], which rows may be found; their values are finite.
        longest: length of the longest of these rows, or more.
        k: number of rows.
        names: NAME records [n], by which equal rows are sorted.
    Returns:
        Places int64 [m] of at most k rows, best first; similarities float32 [m].
    """
    places = np.flatnonzero(allowed)
    if len(places) * _SPARSE < len(matrix):
        pieces = [matrix[places[first : first + _PAIRS]] @ query for first in range(0, len(places), _PAIRS)]
        near = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    else:
        near = matrix @ query
        near = near if len(places) == len(near) else near[places]
    if k < len(places):
        far = slack(len(query)) * longest * float(np.linalg.norm(query))
        last = np.partition(near, len(near) - k)[len(near) - k]
        places = places[near >= last - 2 * far]
    found = np.empty(len(places), np.float32)
    for first in range(0, len(places), _PAIRS):
        some = matrix[places[first : first + _PAIRS]]
        found[first : first + _PAIRS] = dots(np.broadcast_to(query, some.shape), some)
    order = np.lexsort((names["row"][places], names["shard"][places], -found))[:k]
    return places[order], found[order]
