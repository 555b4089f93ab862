"""The rows of some parts that a filter has not dropped yet, and what the ranked ones are ranked by.

A row's place is counted over all of these parts, so that one call of NumPy, Arrow or DuckDB does for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from clip_transforms.parts.reader import KEYS
from clip_transforms.select.cut import ordered
from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import ExpressionError


@dataclasses.dataclass(frozen=True)
class Left:
    """The rows that are left while conditions drop some; `Left.all_of` begins.

    Attributes:
        tables: name of a part → the columns that were read, of all its rows or of those that a condition let through.
        places: int64 [m], places of the rows that are left, ascending.
        counts: what became of the others: `seen`, `null` or `dropped.<reason>` → int64 [p], a number for each part.
    """

    tables: Mapping[str, pa.Table]
    places: np.ndarray
    counts: Mapping[str, np.ndarray]

    @classmethod
    def all_of(cls, tables: Mapping[str, pa.Table]) -> Left:
        """Begin with all rows."""
        seen = np.array([table.num_rows for table in tables.values()])
        return cls(tables, np.arange(seen.sum()), {"seen": seen})

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Place of the first row of each part, and the number of all rows in the tables, int64 [p + 1]."""
        return np.cumsum([0, *(table.num_rows for table in self.tables.values())])

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Where `places` passes from part to part, int64 [p + 1]."""
        return np.searchsorted(self.places, self.starts)

    def keep(self, reason: str, stays: np.ndarray) -> Left:
        """Return what is left when rows are dropped.

        Args:
            reason: name of their count.
            stays: bool [m], which of the rows that are left stay.
        """
        before = self.counts.get(reason, np.zeros(len(self.tables), np.int64))
        if stays.all():
            return dataclasses.replace(self, counts={**self.counts, reason: before})
        left = dataclasses.replace(self, places=self.places[stays])
        dropped = np.diff(self.bounds) - np.diff(left.bounds)
        return dataclasses.replace(left, counts={**self.counts, reason: before + dropped})

    def of_each(self, values: np.ndarray) -> list[np.ndarray]:
        """Split an array with a value for each row that is left into those of each part."""
        return np.split(values, self.bounds[1:-1])

    @property
    def places_of_each(self) -> list[np.ndarray]:
        """Of each part, the places in its table of the rows that are left."""
        return [places - start for places, start in zip(self.of_each(self.places), self.starts, strict=False)]

    def rows(self, columns: Sequence[str]) -> list[pa.Table]:
        """Return some columns of the rows that are left, part by part; all columns if none is named."""
        tables = [table.select(columns) if columns else table for table in self.tables.values()]
        if len(self.places) == self.starts[-1]:
            return tables
        return [table.take(places) for table, places in zip(tables, self.places_of_each, strict=True)]


def evaluated(expression: Expression, left: Left, cure: str) -> pa.Array:
    """Evaluate an expression on the rows that are left, so that no dropped row can make it fail.

    Args:
        expression: the expression.
        left: the rows.
        cure: the end of the sentence if it fails: what the user can do.
    Returns:
        A value for each row that is left.
    Raises:
        ExpressionError: naming the part, if DuckDB cannot evaluate it, for example since a text of a row is no number.
    """
    tables = left.rows(expression.columns)
    try:
        return expression.evaluate(pa.concat_tables(tables))
    except ExpressionError as error:
        for part, table in zip(left.tables, tables, strict=True):
            try:
                expression.evaluate(table, f" fails on a row of {part}")
            except ExpressionError as of_row:
                raise ExpressionError(f"{of_row}; {cure}") from None
        raise error


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows that may stay.

    Attributes:
        left: the rows, and what became of the others.
        values: float32, float64, int64 or uint64 [m], what they are ranked by; None if they are not.
        ranked: number of rows that are ranked, with those whose value is null or NaN.
    """

    left: Left
    values: np.ndarray | None
    ranked: int = 0

    @classmethod
    def ranked_by(cls, left: Left, rank: pa.Array, dtype: np.dtype) -> Candidates:
        """Return the rows that are left, ranked.

        Args:
            left: the rows.
            rank: the value of each; null and NaN are none.
            dtype: type of the values, in which they have the same order.
        """
        ranked, has_value = len(left.places), rank.is_valid().to_numpy(zero_copy_only=False)
        left = left.keep("null", has_value)
        values = rank.drop_null().cast(pa.from_numpy_dtype(dtype)).to_numpy(zero_copy_only=False)
        if dtype.kind == "f":
            is_number = ~np.isnan(values)
            left, values = left.keep("null", is_number), values[is_number]
        return cls(left, values, ranked)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """The values as ordered integers, uint32 or uint64 [m]."""
        assert self.values is not None
        return ordered(self.values)

    def ties(self, key: int) -> dict[str, np.ndarray]:
        """Part → places in its table of the rows with just this key."""
        of_each = zip(self.left.tables, self.left.places_of_each, self.left.of_each(self.keys), strict=True)
        return {part: places[keys == key] for part, places, keys in of_each}

    def kept(self, cut: int | None, quotas: Mapping[str, int]) -> Iterator[tuple[str, pa.Table, dict[str, int]]]:
        """Yield each part: its name, the KEYS and values of the rows that stay, and the counts of all its rows.

        Args:
            cut: the smallest key that stays; None if all stay.
            quotas: part → how many of its rows with just this key stay, the first ones; of other parts all do.
        """
        left, values = self.left, self.values
        if cut is not None and values is not None:
            stays = self.keys >= cut
            for part, keys, of_part in zip(left.tables, left.of_each(self.keys), left.of_each(stays), strict=True):
                if part in quotas:
                    of_part[np.flatnonzero(keys == cut)[quotas[part] :]] = False
            left, values = left.keep("dropped.top", stays), values[stays]
        ranks = None if values is None else left.of_each(values + 0)
        counts = {**left.counts, "kept": np.diff(left.bounds)}
        for number, (part, places) in enumerate(zip(left.tables, left.places_of_each, strict=True)):
            kept = left.tables[part].select(KEYS).take(places)
            if ranks is not None:
                kept = kept.append_column("by", pa.array(ranks[number]))
            counted = {reason: int(of[number]) for reason, of in counts.items()}
            if not counted["seen"]:
                counted.pop("dropped.sample", None)  # no sample is taken of a part without rows
            yield part, kept, counted
