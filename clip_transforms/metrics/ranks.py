"""Retrieval: how many wrong candidates come before the right one. No matrix of all against all is ever held."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

KS = (1, 5, 10)  # recall is measured at these
_BLOCK = 2_048  # queries, and candidates, that are compared at once: 16 MB of similarities
_PAIRS = 8_192  # pairs at once whose similarity is computed in float64


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the dot product of each row of `a` with the row of `b` in the same place, float64 [n].

    The product of two float32 is exact in float64, and a row is added up in an order that depends on d alone. So the
    result depends on no thread, and equal rows have equal products.

    Args:
        a: float32 [n, d].
        b: float32 [n, d].
    """
    found = np.empty(len(a))
    for first in range(0, len(a), _PAIRS):
        some = slice(first, first + _PAIRS)
        found[some] = (a[some].astype(np.float64) * b[some]).sum(axis=1)
    return found


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries with their best right candidates.

    Attributes:
        vectors: float32 [q, d], of length 1.
        scores: float64 [q], similarity of the best right candidate.
        places: int64 [q], its place among all candidates; of equal ones the first.
    """

    vectors: np.ndarray
    scores: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, right: np.ndarray, owners: np.ndarray, places: np.ndarray) -> Queries:
        """Find the best right candidate of each query.

        Args:
            vectors: float32 [q, d], of length 1.
            right: float32 [r, d], right candidates; every query has one or more.
            owners: int64 [r], the query that each of them is right for, ascending.
            places: int64 [r], their places among all candidates, ascending.
        """
        scores = dots(vectors[owners], right)
        order = np.lexsort([places, -scores, owners])  # by query, the best and first one first
        best = order[np.flatnonzero(np.diff(owners[order], prepend=-1))]
        return cls(vectors, scores[best], places[best])


def ranks(queries: Queries, candidates: Iterable[np.ndarray], most: int = KS[-1]) -> tuple[np.ndarray, np.ndarray]:
    """Count the candidates that come before the best right one.

    A candidate comes before it if its similarity is larger, or equal and its place is lower. Similarities are float64
    sums in a fixed order; float32 products only settle what is out of doubt. With `texts @ images.T` and one right
    image a text this is CLIP_benchmark's `image_retrieval_recall@k` = mean(rank < k), and the other way round its
    `text_retrieval_recall@k`, where an image is hit if any of its captions is among the first k.

    Args:
        queries: the queries.
        candidates: all candidates in the order of their places, in pieces: float32 [c, d], of length 1.
        most: counting may stop there.
    Returns:
        int64 [q], number of candidates before the best right one, or `most` if there are that many; and bool [q],
        whether a candidate at another place is just as similar, among those that were looked at.
    """
    ahead, tied = np.zeros(len(queries.vectors), np.int64), np.zeros(len(queries.vectors), bool)
    first = 0
    for piece in candidates:
        for start in range(0, len(piece), _BLOCK):
            block = piece[start : start + _BLOCK]
            open_ = np.flatnonzero(ahead < most)
            for part in np.split(open_, range(_BLOCK, len(open_), _BLOCK)):
                _count(queries, part, block, first + start, (ahead, tied))
        first += len(piece)
    return np.minimum(ahead, most), tied


def _count(
    queries: Queries, some: np.ndarray, block: np.ndarray, first: int, found: tuple[np.ndarray, np.ndarray]
) -> None:
    """Add the candidates of one block that come before the right one of some queries."""
    ahead, tied = found
    vectors, scores, places = queries.vectors[some], queries.scores[some], queries.places[some]
    slack = (vectors.shape[1] + 8) * 2.0**-23  # a bound of a float32 product's error, in any order of adding up
    similarity = vectors @ block.T
    certain = similarity > (scores + slack).astype(np.float32)[:, None]
    ahead[some] += np.count_nonzero(certain, axis=1)
    query, candidate = np.nonzero(~certain & (similarity >= (scores - slack).astype(np.float32)[:, None]))
    for start in range(0, len(query), _PAIRS):
        q, c = query[start : start + _PAIRS], candidate[start : start + _PAIRS]
        exact = dots(vectors[q], block[c])
        same = exact == scores[q]
        before = (exact > scores[q]) | (same & (first + c < places[q]))
        np.add.at(ahead, some[q[before]], 1)
        tied[some[q[same & (first + c != places[q])]]] = True
