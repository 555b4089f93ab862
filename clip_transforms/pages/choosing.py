"""The rows that a report shows pictures of: the best and the least of a kind, exactly, over all parts."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SUREST, LEAST_SURE, BEST, WORST, REJECTED, DUPLICATES = (
    "surest",
    "least sure",
    "best",
    "worst",
    "rejected",
    "duplicates",
)
Kind = tuple[str, ...]  # one of the names above, then what it is of
MOST_CLASSES = 24  # classes with pictures, of all taxonomies together
_PAIRS, _PER_CLASS, _REJECTS, _GROUPS = 12, 5, 3, 6
_GROUP_ROWS = 6


class Row(NamedTuple):
    """A row that may be shown; the smallest ones of a kind are.

    Attributes:
        rank: what the kind is ordered by.
        shard, row: the row; `row` is -1 for a whole shard.
        more: what else is known of it.
    """

    rank: float
    shard: str
    row: int
    more: tuple[Any, ...] = ()


Chosen = Mapping[Kind, list[Row]]


def _how_many(kind: Kind) -> int:
    numbers = {BEST: _PAIRS, WORST: _PAIRS, REJECTED: _REJECTS, DUPLICATES: _GROUPS}
    return numbers.get(kind[0], _PER_CLASS)


def shown_classes(ranked: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Decide which classes get pictures; taxonomy → classes, the most frequent first, of so many taxonomies as fit."""
    most = max(1, MOST_CLASSES // max(1, len(ranked)))
    return {taxonomy: list(classes[:most]) for taxonomy, classes in list(ranked.items())[:MOST_CLASSES]}


def choose_rows(table: pa.Table, shown: Mapping[str, Sequence[str]]) -> Chosen:
    """Choose the best and the least of a part.

    Args:
        table: `shard`, `row`, `clip_score`, and of each taxonomy `label` and `probability`; n rows.
        shown: taxonomy → classes that get pictures.
    """
    chosen: dict[Kind, list[Row]] = {}
    scores = table.column("clip_score").cast(pa.float32()).to_numpy()
    _choose(chosen, (BEST,), table, -scores)
    _choose(chosen, (WORST,), table, scores)
    for taxonomy, classes in shown.items():
        probabilities = table.column(f"{taxonomy}.probability").to_numpy()
        labels = table.column(f"{taxonomy}.label").cast(pa.string())
        for name in classes:
            of_class = pc.fill_null(pc.equal(labels, name), False).to_numpy()
            values = np.where(of_class, probabilities, np.nan)
            _choose(chosen, (SUREST, taxonomy, name), table, -values)
            _choose(chosen, (LEAST_SURE, taxonomy, name), table, values)
    return chosen


def _choose(chosen: dict[Kind, list[Row]], kind: Kind, table: pa.Table, ranks: np.ndarray) -> None:
    """Choose the rows of the smallest ranks; the first ones of equal rank; none whose rank is NaN."""
    rows = table.column("row").to_numpy()
    places = np.flatnonzero(~np.isnan(ranks))
    places = places[np.lexsort([rows[places], ranks[places]])][: _how_many(kind)]
    if len(places):  # all rows of a part are of one shard
        shard = table.column("shard")[0].as_py()
        chosen[kind] = [Row(float(ranks[place]), shard, int(rows[place])) for place in places]


def choose_rejects(table: pa.Table) -> Chosen:
    """Choose examples of each reason among the rejects of a part; `more` is key, message and size."""
    found: defaultdict[Kind, list[Row]] = defaultdict(list)
    for reject in table.to_pylist():
        kind = (REJECTED, reject["modality"], reject["stage"], reject["reason"])
        more = (reject["key"] or "", reject["message"], reject["num_bytes"] or 0)
        row = -1 if reject["row"] is None else reject["row"]
        found[kind].append(Row(0.0, reject["shard"], row, more))
    return best_of([found])


def choose_groups(table: pa.Table) -> Chosen:
    """Choose the largest groups of a file of duplicates; `more` is the group's size and its first rows.

    Args:
        table: `group`, `shard`, `row`, `kept` and `similarity`, sorted by group.
    """
    groups = table.column("group").to_numpy()
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(starts, append=len(groups))
    chosen = []
    for place in np.argsort(-sizes, kind="stable")[:_GROUPS].tolist():
        rows = table.slice(int(starts[place]), int(sizes[place])).to_pylist()
        rows.sort(key=lambda row: (not row["kept"], -row["similarity"], row["shard"], row["row"]))
        members = tuple((row["shard"], row["row"], row["kept"], row["similarity"]) for row in rows[:_GROUP_ROWS])
        chosen.append(Row(-len(rows), rows[0]["shard"], rows[0]["row"], (len(rows), members)))
    return {(DUPLICATES,): chosen} if chosen else {}


def best_of(several: Iterable[Chosen]) -> Chosen:
    """Choose among rows that were chosen; the order of what is given does not matter."""
    found: defaultdict[Kind, list[Row]] = defaultdict(list)
    for chosen in several:
        for kind, rows in chosen.items():
            found[kind] = heapq.nsmallest(_how_many(kind), [*found[kind], *rows])
    return dict(found)


def apart(first: Sequence[Row], last: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return both ends of an order without a row that stands in both: few rows are shared out, half to each end.

    Args:
        first: the first rows of the order.
        last: the first rows of its reverse.
    """
    places = [{(one.shard, one.row) for one in end} for end in (first, last)]
    if places[0].isdisjoint(places[1]):
        return list(first), list(last)
    kept = list(first[: (len(places[0] | places[1]) + 1) // 2])
    shown = {(one.shard, one.row) for one in kept}
    return kept, [one for one in last if (one.shard, one.row) not in shown]


def pictured(chosen: Chosen) -> dict[str, list[int]]:
    """Return shard → places of the rows whose pictures are shown, sorted."""
    places: defaultdict[str, set[int]] = defaultdict(set)
    for kind, rows in chosen.items():
        if kind[0] == DUPLICATES:
            for shard, row, *_ in (member for group in rows for member in group.more[1]):
                places[shard].add(row)
        elif kind[0] != REJECTED:
            for one in rows:
                places[one.shard].add(one.row)
    return {shard: sorted(rows) for shard, rows in places.items()}
