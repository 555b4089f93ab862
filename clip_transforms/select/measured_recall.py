"""How many of the near duplicates were found: some rows are compared with all others."""

from __future__ import annotations

import dataclasses

import numpy as np

from clip_transforms.select.compared_rows import ComparedRows
from clip_transforms.select.near import Rows, near_pairs

_ROWS = 4_096


@dataclasses.dataclass(frozen=True)
class Hits:
    """Pairs of a query and another row at or above the threshold, and how many of them share a group."""

    pairs: int
    found: int

    def __add__(self, other: Hits) -> Hits:
        """Add up."""
        return Hits(self.pairs + other.pairs, self.found + other.found)


def groups_of(ids: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the group of each row, -1 for none: int64 [n].

    Args:
        ids: int64 [n].
        members: MEMBER records, sorted by id.
    """
    if not len(members):
        return np.full(len(ids), -1, np.int64)
    places = np.minimum(np.searchsorted(members["id"], ids), len(members) - 1)
    return np.where(members["id"][places] == ids, members["group"][places], -1)


def hits_of(
    queries: np.ndarray, groups: np.ndarray, found: ComparedRows, members: np.ndarray, threshold: float
) -> Hits:
    """Compare the queries with the rows of one part.

    Args:
        queries: records with `id` and `values` [m, d] of q rows.
        groups: int64 [q], the group of each, -1 for none.
        found: the rows of the part.
        members: MEMBER records of the part's rows that have a group, sorted by id.
        threshold: smallest cosine of near duplicates.
    """
    theirs, total = groups_of(found.ids, members), Hits(0, 0)
    if not len(queries):
        return total
    asked = _rows(queries["id"], queries["values"])
    for first in range(0, len(found.ids), _ROWS):
        some = slice(first, first + _ROWS)
        both = asked.followed_by(_rows(found.ids[some], found.values[some]))
        group = np.concatenate([groups, theirs[some]])
        for a, b, _ in near_pairs(both, threshold, len(queries)):
            other = both.ids[a] != both.ids[b]
            total += Hits(int(other.sum()), int((other & (group[a] == group[b]) & (group[a] >= 0)).sum()))
    return total


def _rows(ids: np.ndarray, values: np.ndarray) -> Rows:
    return Rows(ids, values, np.zeros(len(ids)), np.ones(len(ids), bool))
