"""Near duplicates among the rows of a block: all pairs, by blocked matrix products."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from clip_transforms.select.cosines import cosines, slack
from clip_transforms.select.disjoint_sets import DisjointSets

RULES = ("components", "semdedup")
_NOBODY = np.empty(0, np.int64)
_TILE = 512  # a product of two tiles is 1 MB, which stays in the cache
_SHARE = 3  # the short vectors have a third of the dimensions
_FEW = 512  # if of so many pairs more than one is a candidate, a product of whole vectors is cheaper than exact cosines


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one block.

    Attributes:
        ids: int64 [n], unique.
        values: float16 or float32 [n, m, d]: m vectors a row as they are stored, none of length 0.
        scores: float64 [n], cosine with the block's centroid.
        home: bool [n], whether the row is at home in this block.
    """

    ids: np.ndarray
    values: np.ndarray
    scores: np.ndarray
    home: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    @classmethod
    def of(cls, records: Sequence[np.ndarray]) -> Rows:
        """Put arrays of records together, which have these fields, and sort them.

        Their vectors are most of the memory. They are copied once.
        """
        ids, scores, home = (np.concatenate([some[name] for some in records]) for name in ("id", "score", "home"))
        rows = cls(ids, np.empty((len(ids), 0, 0)), scores, home == 1)
        place = np.empty(len(ids), np.int64)
        place[rows.order] = np.arange(len(ids))
        values = np.empty((len(ids), *records[0]["values"].shape[1:]), records[0]["values"].dtype)
        ends = np.cumsum([len(some) for some in records])
        for some, where in zip(records, np.split(place, ends[:-1]), strict=True):
            values[where] = some["values"]
        return cls(ids[rows.order], values, scores[rows.order], rows.home[rows.order])

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Places of the rows, int64 [n]: those at home first, each from the centroid outwards, so that copies meet."""
        return np.lexsort([self.ids, -self.scores, ~self.home])

    def sorted(self) -> Rows:
        """Return the rows in their order."""
        if np.array_equal(self.order, np.arange(len(self))):
            return self
        return Rows(self.ids[self.order], self.values[self.order], self.scores[self.order], self.home[self.order])

    def followed_by(self, others: Rows) -> Rows:
        """Return these rows and then others."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(others)
        return Rows(*(np.concatenate(both) for both in zip(mine, theirs, strict=True)))


def near_pairs(
    rows: Rows, threshold: float, first: int = 0, sets: DisjointSets | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Find pairs of rows whose cosine is at least the threshold, both rounded to float32.

    Args:
        rows: n rows; pairs of two rows that are both not at home may be left out.
        threshold: smallest cosine.
        first: pairs are looked for between the rows before this place and those from it on; 0 means between all.
        sets: sets of the places of the rows, if pairs within one set need not be found. The caller joins what is found.
    Yields:
        Places of two rows a and b, int64 [p] each, and their cosines, float32 [p]; every pair once, a < b.
    """
    scaled = _Scaled(rows.values)
    tiles = _tiles(rows.home, first)
    for second in (tile for tile in tiles if tile.start >= first):
        for one in (tile for tile in tiles if tile.start <= second.start and (not first or tile.start < first)):
            if not (rows.home[one.start] or rows.home[second.start]):
                continue
            roots = None if sets is None else (sets.roots(one), sets.roots(second))
            if roots and (roots[0] == roots[1][0]).all() and (roots[1] == roots[1][0]).all():
                continue
            a, b = scaled.candidates(one, second, threshold, roots)
            if one == second:
                a, b = a[a < b], b[a < b]
            if len(a):
                found = cosines(rows.values, a, b)
                near = found >= np.float32(threshold)
                yield a[near], b[near], found[near]


def _tiles(home: np.ndarray, first: int) -> list[slice]:
    """Cut rows into tiles of at most _TILE, none of which goes over `first`, or has both rows at home and guests."""
    edges = np.unique([0, first, *np.flatnonzero(np.diff(home)) + 1, len(home)]).tolist()
    cut = [np.linspace(a, b, -(-(b - a) // _TILE) + 1).astype(int).tolist() for a, b in itertools.pairwise(edges)]
    return [slice(*ends) for places in cut for ends in itertools.pairwise(places)]


class _Scaled:
    """Vectors of length 1 in float32: quick, and good enough to find candidates."""

    def __init__(self, values: np.ndarray):
        """Take vectors float16 or float32 [n, m, d]."""
        self._values = values.astype(np.float32, copy=False)
        first = max(1, values.shape[-1] // _SHARE) - 1
        self._first, rest = self._values[..., :first], self._values[..., first:]
        self._squares = np.einsum("nmd,nmd->nm", rest, rest)[..., None]
        self._lengths = np.sqrt(np.einsum("nmd,nmd->nm", self._first, self._first)[..., None] + self._squares)

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """The vectors, float32 [n, m, d]."""
        return self._values / self._lengths

    @functools.cached_property
    def short(self) -> np.ndarray:
        """The first s - 1 numbers of each vector and the length of the others, float32 [n, m, s].

        By Cauchy and Schwarz, a product of two of them is at least that of the whole vectors.
        """
        return np.concatenate([self._first, np.sqrt(self._squares)], axis=-1) / self._lengths

    def candidates(
        self, one: slice, other: slice, threshold: float, roots: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of two tiles that may be near, and are not in one set yet."""
        low = np.float32(threshold - slack(self._values.shape[-1]))
        a, b = _above(self.short[one], self.short[other], low, roots)
        if len(a) * _FEW > (one.stop - one.start) * (other.stop - other.start):
            a, b = _above(self.whole[one], self.whole[other], low, roots)
        return a + one.start, b + other.start


def _above(
    one: np.ndarray, other: np.ndarray, low: np.float32, roots: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of float32 [a, m, s] and [b, m, s] all of whose products are at least `low`."""
    near = one[:, 0] @ other[:, 0].T >= low
    for vector in range(1, one.shape[1]):
        near &= one[:, vector] @ other[:, vector].T >= low
    a, b = np.divmod(np.flatnonzero(near), len(other))  # ten times faster than nonzero in two dimensions
    if roots:
        apart = roots[0][a] != roots[1][b]
        a, b = a[apart], b[apart]
    return a, b


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in a block.

    Attributes:
        edges: int64 [e, 2], ids of rows; their connected components are those of all pairs that were found.
        dropped: int64 [r], ids of the rows that SemDeDup's rule drops; none for the rule `components`.
        cosines: float32 [r], the largest cosine of each with a row before it.
    """

    edges: np.ndarray
    dropped: np.ndarray
    cosines: np.ndarray


def compare(pieces: Iterable[Rows], threshold: float, rule: str) -> Found:
    """Compare the rows of one piece of a block with each other, and with those of the block's later pieces.

    SemDeDup goes through a block from its edge to the centroid and drops each row that has a cosine above the threshold
    with any row before it, whether that one was dropped or not. Of a pair, this drops the row nearer to the centroid,
    and of two at the same distance the one with the larger id.

    Args:
        pieces: the piece, and then the later ones, of which one at a time is held.
        threshold: smallest cosine of near duplicates; with `semdedup` the cosine must be above it.
        rule: one of RULES.
    """
    pieces = iter(pieces)
    piece = next(pieces).sorted()
    sets, edges = DisjointSets(len(piece)), [np.empty((0, 2), np.int64)]
    dropped, cosines_of_dropped = [_NOBODY], [np.empty(0, np.float32)]
    for rows, first in itertools.chain([(piece, 0)], ((piece.followed_by(p.sorted()), len(piece)) for p in pieces)):
        sets = sets.grown(len(rows))
        for a, b, found in near_pairs(rows, threshold, first, sets if rule == "components" else None):
            if rule == "semdedup":
                above = found > np.float32(threshold)
                a, b = a[above], b[above]
                dropped.append(_nearer_to_the_centroid(rows, a, b))
                cosines_of_dropped.append(found[above])
            sets.join(a, b)
        roots = sets.roots()
        joined = np.flatnonzero(roots != np.arange(len(rows)))
        edges.append(np.stack([rows.ids[joined], rows.ids[roots[joined]]], axis=1))
        sets = sets.shrunk(len(piece))
    return Found(np.concatenate(edges), *largest(np.concatenate(dropped), np.concatenate(cosines_of_dropped)))


def largest(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each id once, sorted, with its largest value."""
    order = np.lexsort([-values, ids])
    first = order[np.flatnonzero(np.diff(ids[order], prepend=-1))]
    return ids[first], values[first]


def _nearer_to_the_centroid(rows: Rows, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the ids of the rows of each pair that come later on the way from the edge to the centroid."""
    nearer = rows.scores[a] > rows.scores[b]
    same = rows.scores[a] == rows.scores[b]
    return rows.ids[np.where(nearer | (same & (rows.ids[a] > rows.ids[b])), a, b)]
