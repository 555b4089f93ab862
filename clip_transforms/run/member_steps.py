"""The steps of `deduplicate` between the pairs that are near and the files of groups: who belongs to which group."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms.run.deduplicate_steps import NOTHING, Chosen, Deduplicating, last_steps
from clip_transforms.run.over_parts import Step
from clip_transforms.select.bucket_file import read_bucket, read_note, read_records, split_sorted, write_buckets
from clip_transforms.select.duplicates import COMPONENTS
from clip_transforms.select.groups import (
    COLUMNS,
    MEMBER,
    Grouped,
    as_bytes,
    chosen,
    described_rows,
    members_of,
    read_rows,
    similarity_to_kept,
)
from clip_transforms.select.measured_recall import Hits, groups_of, hits_of
from clip_transforms.select.near import largest

State = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _JoinPairs(Step):
    """All pairs → the group of each row that has a near duplicate. Memory grows with these rows, 100 bytes each."""

    run: Deduplicating

    def items(self, state: State) -> list[int]:
        return [state["tasks"]]

    def do(self, item: int) -> Mapping[str, int]:
        run, uri, pairs = self.run, self.run.work("members"), self.run.works("pairs", item)
        if (note := read_note(uri)) is not None:
            return note
        edges = read_records(pairs, 0, np.dtype("<i8")).reshape(-1, 2)
        dropped = [read_records(pairs, bucket, np.dtype(dtype)) for bucket, dtype in ((1, "<i8"), (2, "<f4"))]
        members = members_of(edges, *largest(*dropped))
        queries = np.frombuffer(read_bucket(run.work("centroids"), 1), run.sample)["id"]
        buckets = split_sorted(members, run.run_of(members["id"]), len(run.first_parts))
        note = {"buckets": int(members["bucket"].max(initial=0)) + 1}
        write_buckets(uri, [*buckets, groups_of(queries, members)], run.folder, note)
        return note

    def after(self, state: State, total: Counter) -> dict[str, Any]:
        return {**state, "buckets": total["buckets"]}


@dataclasses.dataclass(frozen=True)
class _GatherGroups(Step):
    """Run of parts → its rows with near duplicates, to the buckets of their groups; what was found and what not."""

    run: Deduplicating
    threaded = True

    def items(self, state: State) -> Iterator[tuple[int, Any, int]]:
        return ((number, parts, state["buckets"]) for number, parts in self.run.runs())

    def do(self, item: tuple[int, Any, int]) -> Mapping[str, int]:
        number, parts, count = item
        run, uri = self.run, self.run.work("rows", number)
        if (note := read_note(uri)) is not None:
            return note
        members = np.frombuffer(read_bucket(run.work("members"), number), MEMBER)
        rows, values, hits = [], [np.empty(0, run.vectors)], Hits(0, 0)
        for part in parts:
            found = run.read(part, COLUMNS)
            if run.rows.measure_recall:
                hits += hits_of(*self._queries(), found, members, run.rows.threshold)
            places = np.flatnonzero(np.isin(found.ids, members["id"]))
            rows.append(described_rows(found).take(places))
            values.append(found.values[places])
        buckets = self._buckets(pa.concat_tables(rows), np.concatenate(values), members, count)
        note = {"pairs": hits.pairs, "found": hits.found}
        write_buckets(uri, buckets, run.folder, note)
        return note

    def _buckets(self, rows: pa.Table, values: np.ndarray, members: np.ndarray, count: int) -> Iterator[Any]:
        """Yield two buckets for each bucket of groups: the rows with what is known of them, and their vectors."""
        known = {name: pa.array(members[name]) for name in ("group", "dropped", "cosine")}
        rows = pa.table({**{name: rows.column(name) for name in rows.column_names}, **known})
        for bucket in range(count):
            places = np.flatnonzero(members["bucket"] == bucket)
            yield as_bytes(rows.take(places))
            yield values[places] if self.run.rows.rule == COMPONENTS else b""

    def _queries(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows whose duplicates are counted, and their groups."""
        run = self.run
        queries = np.frombuffer(read_bucket(run.work("centroids"), 1), run.sample)
        groups = np.frombuffer(read_bucket(run.work("members"), len(run.first_parts)), "<i8")
        return queries, groups

    def after(self, state: State, total: Counter) -> dict[str, Any]:
        return {**state, "measured": {"pairs": total["pairs"], "found": total["found"]}}


def member_steps(run: Deduplicating) -> list[Step]:
    """Return the steps that make groups of pairs, and those that write them."""
    return [_JoinPairs(run), _GatherGroups(run), *last_steps(run, _choose_near)]


def _choose_near(run: Deduplicating, bucket: int) -> Chosen:
    files = run.works("rows", len(run.first_parts))
    tables = read_rows(files, 2 * bucket)
    if not tables:
        return NOTHING
    rows = pa.concat_tables(tables)
    grouped = Grouped(rows, rows.column("group").to_numpy())
    if run.rows.rule != COMPONENTS:
        kept = ~rows.column("dropped").to_numpy()
        return grouped, kept, np.where(kept, np.float32(1), rows.column("cosine").to_numpy())
    kept = chosen(grouped, run.rows.keep)
    return grouped, kept, similarity_to_kept(files, 2 * bucket + 1, grouped.groups, kept, run.vectors)
