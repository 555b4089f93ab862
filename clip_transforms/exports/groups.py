"""Consecutive parts whose rows are written by one task. The groups depend on the counts alone, not on the workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Group(NamedTuple):
    """Consecutive parts of a dataset.

    Attributes:
        parts: (name of a part, number of its rows that are taken).
        first: number of the first file that the group writes.
        files: number of its files.
    """

    parts: list[tuple[str, int]]
    first: int
    files: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(rows for _, rows in self.parts)


def groups_of(counts: Iterable[tuple[str, int]], rows: int, per_file: int) -> list[Group]:
    """Group parts so that each is read once, by one task.

    Args:
        counts: (part, number of its rows that are taken), in the dataset's order; parts without any are left out.
        rows: a group takes no more parts once it has so many rows.
        per_file: the most rows of a file. Each file of a group but the last is full.
    """
    groups: list[Group] = []
    waiting: list[tuple[str, int]] = []
    found = [(part, count) for part, count in counts if count]
    for place, one in enumerate(found):
        waiting.append(one)
        if sum(count for _, count in waiting) >= rows or place == len(found) - 1:
            first = groups[-1].first + groups[-1].files if groups else 0
            files = -(-sum(count for _, count in waiting) // per_file)
            groups.append(Group(waiting, first, files))
            waiting = []
    return groups


def padded(number: int, count: int, least: int = 1) -> str:
    """Return a number as text, so long that the texts of `count` numbers sort as the numbers do."""
    return str(number).zfill(max(least, len(str(max(0, count - 1)))))
