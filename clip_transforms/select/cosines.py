"""Cosines of pairs of rows, computed so that no thread, batch or machine changes a bit of them.

A float32 matrix product adds up in an order that depends on the shapes and on the library. It finds candidates; these
functions decide.
"""

from __future__ import annotations

import numpy as np

_PAIRS = _ROWS = 128  # at once: 512 kB as float64 at d = 512, which stays in the cache


def lengths(rows: np.ndarray) -> np.ndarray:
    """Return the length of every vector.

    Args:
        rows: float16 or float32 [..., d].
    Returns:
        float64 [...].
    """
    found = np.empty(rows.shape[:-1])
    for first in range(0, len(rows), _ROWS):
        wide = rows[first : first + _ROWS].astype(np.float64)
        found[first : first + _ROWS] = _dots(wide, wide)
    return np.sqrt(found)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale vectors [..., d] to length 1, as float32."""
    found, scale = np.empty(rows.shape, np.float32), lengths(rows)[..., None]
    for first in range(0, len(rows), _ROWS):
        found[first : first + _ROWS] = rows[first : first + _ROWS] / scale[first : first + _ROWS]
    return found


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the dot product of each vector of `a` with that of `b` in the same place.

    The product of two float32 is exact in float64, and NumPy adds a row up in an order that depends on d alone.

    Args:
        a: float16 or float32 [..., d].
        b: of the shape of `a`.
    Returns:
        float64 [...].
    """
    return _dots(a.astype(np.float64), b.astype(np.float64))


def dots_at(rows: np.ndarray, a: np.ndarray, others: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the dot product of each of `rows` at the places `a` with that of `others` at `b`, a few at a time.

    Args:
        rows: float16 or float32 [n, d].
        a: int64 [p].
        others: float16 or float32 [m, d].
        b: int64 [p].
    Returns:
        float64 [p].
    """
    found = np.empty(len(a))
    for first in range(0, len(a), _PAIRS):
        found[first : first + _PAIRS] = dots(rows[a[first : first + _PAIRS]], others[b[first : first + _PAIRS]])
    return found


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=-1)


def cosines(rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosines of pairs of rows.

    Args:
        rows: float16 or float32 [n, m, d]: m vectors a row, none of them of length 0.
        a: places of the first rows of the pairs, int64 [p].
        b: places of the second rows, int64 [p].
    Returns:
        float32 [p]: the smallest of the m cosines of each pair; exactly 1 for equal vectors.
    """
    found = np.empty(len(a), np.float32)
    for first in range(0, len(a), _PAIRS):
        one, other = (rows[places[first : first + _PAIRS]].astype(np.float64) for places in (a, b))
        squares = _dots(one, one) * _dots(other, other)
        found[first : first + _PAIRS] = (_dots(one, other) / np.sqrt(squares)).min(axis=-1)
    return found


def slack(d: int) -> float:
    """Return a bound of the error of a cosine in float32, lengths and product, in any order of adding up."""
    return (d + 8) * 2.0**-23
