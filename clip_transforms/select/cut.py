"""Exact cut-offs by counting: the value at a place of any number of values, without a sort and without a sample.

Every value becomes an unsigned integer in the same order. The first pass counts the values by their upper 16 bits, the
next ones by 16 further bits within the bin that holds the place: two passes for float32, four for numbers of 64 bits.
Memory is 65,536 counters, whatever the number of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_BITS = 16
_BINS = 1 << _BITS


def ordered(values: np.ndarray) -> np.ndarray:
    """Turn numbers into unsigned integers of the same width that compare as they do; -0.0 and 0.0 become one.

    Args:
        values: float32 or float64 [n], without NaN; or int64 or uint64 [n].
    Returns:
        uint32 or uint64 [n].
    """
    unsigned, signed = (np.uint32, np.int32) if values.dtype == np.float32 else (np.uint64, np.int64)
    width = 8 * values.dtype.itemsize
    sign = unsigned(1 << (width - 1))
    if values.dtype.kind == "u":
        return values
    if values.dtype.kind == "i":
        return values.view(unsigned) ^ sign
    bits = (values + values.dtype.type(0)).view(signed)
    turned = (bits >> signed(width - 1)).view(unsigned) | sign  # all bits of a negative number, else the sign
    return bits.view(unsigned) ^ turned


def value_of(key: int, dtype: np.dtype) -> float | int:
    """Return the value that `ordered` turns into `key`."""
    width = 8 * dtype.itemsize
    if dtype.kind in "iu":
        return key - (1 << (width - 1) if dtype.kind == "i" else 0)
    bits = key ^ (1 << (width - 1)) if key >> (width - 1) else key ^ ((1 << width) - 1)
    unsigned = np.uint32 if dtype == np.float32 else np.uint64
    return float(np.array([bits], unsigned).view(dtype)[0])


def histogram(keys: np.ndarray, prefix: int, level: int) -> np.ndarray:
    """Count keys by the 16 bits of a level.

    Args:
        keys: unsigned integers [n], from `ordered`.
        prefix: the bits above this level that a key must have to be counted; 0 at level 0.
        level: 0 for the uppermost 16 bits.
    Returns:
        int64 [65536].
    """
    shift = 8 * keys.dtype.itemsize - _BITS * (level + 1)
    if level:
        keys = keys[(keys >> keys.dtype.type(shift + _BITS)) == keys.dtype.type(prefix)]
    bins = (keys >> keys.dtype.type(shift)) & keys.dtype.type(_BINS - 1)
    return np.bincount(bins.astype(np.int64), minlength=_BINS)


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for the value at a place, counted from the largest value.

    Attributes:
        place: the place among the values with this prefix, from 0.
        prefix: the uppermost bits of the value, as far as they are known.
        above: number of values that are larger than all with this prefix.
    """

    place: int
    prefix: int = 0
    above: int = 0

    def narrowed(self, counts: np.ndarray) -> Search:
        """Return the search with 16 more bits known.

        Args:
            counts: int64 [65536], the sum of `histogram` over all values at this level.
        """
        from_top = np.cumsum(counts[::-1])
        place_from_top = int(np.searchsorted(from_top, self.place, side="right"))
        passed = int(from_top[place_from_top - 1]) if place_from_top else 0
        found = _BINS - 1 - place_from_top
        return Search(self.place - passed, self.prefix << _BITS | found, self.above + passed)


def place_of_fraction(rows: int, fraction: float) -> int:
    """Return DataComp's place of a top fraction, from 0: `int(rows · fraction)`, as its code computes it."""
    return int(rows * fraction)


@dataclasses.dataclass
class Counts:
    """What is counted in one pass.

    Attributes:
        ranked: number of ranked rows, with those whose value is null or NaN.
        values: number of those with a value.
        bins: int64 [65536], from `histogram`.
        ahead: a guess of the upper 16 bits of the cut → what the next pass would count.
        level: number of the pass, from 0.
    """

    ranked: int
    values: int
    bins: np.ndarray
    ahead: dict[int, np.ndarray]
    level: int = 0

    def add(self, other: Counts) -> None:
        """Add what was counted in other parts in the same pass."""
        self.ranked += other.ranked
        self.values += other.values
        self.bins += other.bins
        for guess, bins in other.ahead.items():
            self.ahead[guess] = self.ahead.get(guess, 0) + bins


def sum_of(counts: Iterable[Counts], level: int) -> Counts:
    """Add up what was counted in one pass over all parts."""
    total = Counts(0, 0, np.zeros(_BINS, np.int64), {}, level)
    for of_parts in counts:
        total.add(of_parts)
    return total


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where the ranked rows are cut.

    Attributes:
        n: number of ranked rows, with those whose value is null or NaN.
        values: number of those with a value.
        search: the search for the value at the cut; None if every row with a value stays.
        ties: number of rows that are equal to the cut, once it is known.
        ahead: a guess of the upper 16 bits → what the next pass would count.
        quotas: part → how many of its rows that are equal to the cut stay; only parts with such rows, None for all.
    """

    n: int
    values: int
    search: Search | None
    ties: int = 0
    ahead: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    quotas: Mapping[str, int] | None = None

    @classmethod
    def begun(cls, counts: Counts, top_fraction: float | None, top_count: int | None) -> Cut:
        """Begin the search when the numbers of rows and values are known.

        Args:
            counts: what the first pass counted.
            top_fraction: part of the rows that stays; None with `top_count`.
            top_count: number of rows that stay; None with `top_fraction`.
        """
        place = place_of_fraction(counts.ranked, top_fraction or 0.0) if top_count is None else top_count - 1
        return cls(counts.ranked, counts.values, Search(place) if 0 <= place < counts.values else None)

    def narrowed(self, counts: Counts) -> Cut:
        """Return the cut after one more pass.

        Args:
            counts: what the pass counted; nothing, if a guess made it superfluous.
        """
        if self.search is None:
            return self
        bins = self.ahead.get(self.search.prefix, counts.bins) if counts.level else counts.bins
        search = self.search.narrowed(bins)
        return dataclasses.replace(self, search=search, ties=int(bins[search.prefix & 0xFFFF]), ahead=counts.ahead)

    def described(self, dtype: np.dtype) -> dict[str, Any]:
        """Return what `selection.json` says of the cut."""
        threshold: float | int | str | None = None if self.search is None else value_of(self.search.prefix, dtype)
        if threshold in (float("inf"), float("-inf")):
            threshold = str(threshold)  # JSON has no infinity
        above = self.values if self.search is None else self.search.above
        return {"n": self.n, "values": self.values, "threshold": threshold, "above": above, "ties": self.ties}
