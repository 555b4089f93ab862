"""The rows of a part that a filter has not dropped yet, and what the ranked ones are ranked by."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clip_transforms.parts.reader import KEYS
from clip_transforms.select.cut import ordered
from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import ExpressionError


class Left:
    """The rows of a part that are left while conditions drop some.

    Attributes:
        part: name of the part.
        table: the columns that were read, of all rows of the part.
        places: int64 [m], places in the table of the rows that are left, ascending.
        counts: what became of the others.
    """

    def __init__(self, part: str, table: pa.Table):
        """Begin with all rows."""
        self.part, self.table = part, table
        self.places, self.counts = np.arange(table.num_rows), Counter(seen=table.num_rows)

    def keep(self, reason: str, stays: np.ndarray) -> None:
        """Drop rows.

        Args:
            reason: name of their count.
            stays: bool [m], which of the rows that are left stay.
        """
        left = self.places[stays]
        self.counts[reason] += len(self.places) - len(left)
        self.places = left

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Return some columns of the rows that are left."""
        table = self.table.select(columns) if columns else self.table
        return table if len(self.places) == table.num_rows else table.take(self.places)


def evaluated(expression: Expression, left: Sequence[Left], cure: str) -> list[pa.Array]:
    """Evaluate an expression on the rows of some parts that are left, so that no dropped row can make it fail.

    Args:
        expression: the expression.
        left: the rows of each part.
        cure: the end of the sentence if it fails: what the user can do.
    Returns:
        A value for each row that is left, part by part.
    Raises:
        ExpressionError: naming the part, if DuckDB cannot evaluate it, for example since a text of a row is no number.
    """
    tables = [of_part.rows(expression.columns) for of_part in left]
    try:
        return expression.evaluate_each(tables)
    except ExpressionError as error:
        for of_part, table in zip(left, tables, strict=True):
            try:
                expression.evaluate(table, f" fails on a row of {of_part.part}")
            except ExpressionError as of_row:
                raise ExpressionError(f"{of_row}; {cure}") from None
        raise error


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows of a part that may stay.

    Attributes:
        table: the columns that were read, of all rows of the part.
        places: int64 [m], places in the table of the rows that may stay, ascending.
        counts: what became of the others: `seen`, `null` and `dropped.<reason>`.
        values: float32, float64, int64 or uint64 [m], what the rows are ranked by; None if they are not.
        ranked: number of rows that are ranked, with those whose value is null or NaN.
    """

    table: pa.Table
    places: np.ndarray
    counts: Counter
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
        left.keep("null", has_value)
        values = rank.drop_null().cast(pa.from_numpy_dtype(dtype)).to_numpy(zero_copy_only=False)
        if dtype.kind == "f":
            is_number = ~np.isnan(values)
            left.keep("null", is_number)
            values = values[is_number]
        return cls(left.table, left.places, left.counts, values, ranked)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """The values as ordered integers, uint32 or uint64 [m]."""
        assert self.values is not None
        return ordered(self.values)

    def kept(self, cut: int | None, quota: int | None) -> tuple[pa.Table, Counter]:
        """Return the rows that stay, and the counts of the whole part.

        Args:
            cut: the smallest key that stays; None if all stay.
            quota: how many of the rows with just this key stay, the first ones; None for all.
        """
        places, counts = self.places, Counter(self.counts)
        ranks = {} if self.values is None else {"by": self.values}
        if cut is not None:
            stays = self.keys >= cut
            if quota is not None:
                ties = np.flatnonzero(self.keys == cut)
                stays[ties[quota:]] = False
            places, ranks = places[stays], {"by": ranks["by"][stays]}
            counts["dropped.top"] += int(np.count_nonzero(~stays))
        counts["kept"] = len(places)
        table = self.table.select(KEYS).take(places)
        for name, values in ranks.items():
            table = table.append_column(name, pa.array(values + 0))
        return table, counts
