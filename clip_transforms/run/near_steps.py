"""The steps of `deduplicate` that find near duplicates: blocks, rows to their blocks, pairs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clip_transforms.run.deduplicate_steps import Deduplicating, OverRuns, Run
from clip_transforms.run.member_steps import member_steps
from clip_transforms.run.over_parts import Step
from clip_transforms.select.block_rows import as_buckets, read_blocks, tasks
from clip_transforms.select.blocks import (
    Blocks,
    give_blocks,
    how_many_blocks,
    how_many_sampled,
    make_blocks,
    one_block,
)
from clip_transforms.select.bucket_file import read_bucket, read_ends, read_note, read_records, write_buckets
from clip_transforms.select.compared_rows import joined
from clip_transforms.select.duplicates import COMPONENTS
from clip_transforms.select.near import compare
from clip_transforms.select.sample import hashes, sampled

_SPARE = 1.05  # more rows than are wanted, since the number of a random sample varies
State = Mapping[str, Any]


class _Sample(OverRuns):
    """Run of parts → some of its rows, at random."""

    def do(self, item: Run) -> Mapping[str, int]:
        number, parts = item
        uri = self.run.work("sample", number)
        if (note := read_note(uri)) is not None:
            return note
        seed, share = self.run.rows.seed, _SPARE * self.run.sampled / max(1, self.run.most_rows)
        records, compared, left_out = [np.empty(0, self.run.sample)], 0, 0
        for part in parts:
            found = self.run.read(part, ["shard"])
            rows, shard = found.table.column("row").to_numpy(), found.shard
            taken = np.flatnonzero(sampled(shard, rows, share, seed))
            records.append(np.empty(len(taken), self.run.sample))
            records[-1]["hash"], records[-1]["id"] = hashes(shard, rows[taken], seed), found.ids[taken]
            records[-1]["values"] = found.values[taken]
            compared, left_out = compared + len(rows), left_out + found.left_out
        note = {"compared": compared, "not_compared": left_out}
        write_buckets(uri, [np.concatenate(records)], self.run.folder, note)
        return note

    def after(self, state: None, total: Counter) -> dict[str, Any]:
        return {"compared": 0, "not_compared": 0, **total}


@dataclasses.dataclass(frozen=True)
class _MakeBlocks(Step):
    """Number of rows → the blocks, and the rows whose duplicates are counted to measure the recall."""

    run: Deduplicating

    def items(self, state: State) -> list[int]:
        return [state["compared"]]

    def do(self, item: int) -> list[Mapping[str, Any]]:
        uri, rows = self.run.work("centroids"), self.run.rows
        if (note := read_note(uri)) is None:
            sample = read_records(self.run.works("sample", len(self.run.first_parts)), 0, self.run.sample)
            sample = sample[np.lexsort([sample["id"], sample["hash"]])]
            queries, vectors = sample[: rows.measure_recall], joined(sample["values"][: how_many_sampled(item)])
            k = how_many_blocks(item)
            blocks = (
                one_block(vectors) if k == 1 else make_blocks(vectors, k, rows.threshold, self._recall(), rows.seed)
            )
            note = {"blocks": len(blocks.centroids), "margin": blocks.margin, "recall": blocks.recall}
            write_buckets(uri, [blocks.centroids, queries], self.run.folder, note)
        return [note]

    def _recall(self) -> float | None:
        """SemDeDup compares rows of the nearest block alone."""
        return self.run.rows.recall if self.run.rows.rule == COMPONENTS else None

    def add(self, summaries: Iterable[list[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
        return [note for notes in summaries for note in notes]

    def after(self, state: State, total: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {**state, **total[0]}


@dataclasses.dataclass(frozen=True)
class _SpreadRows(Step):
    """Run of parts → its rows, to their blocks; the number of rows in each block."""

    run: Deduplicating

    def items(self, state: State) -> Iterator[Run]:
        return self.run.runs()

    def do(self, item: Run) -> np.ndarray:
        number, parts = item
        uri, note = self.run.work("blocks", number), read_note(self.run.work("centroids")) or {}
        dtype = self.run.record
        if read_note(uri) is None:
            d = int(np.prod(self.run.vectors.shape))
            centroids = np.frombuffer(read_bucket(self.run.work("centroids"), 0), np.float32).reshape(-1, d)
            blocks = Blocks(centroids, note["margin"])
            found = [self.run.read(part) for part in parts]
            ids, values = (np.concatenate([getattr(rows, name) for rows in found]) for name in ("ids", "values"))
            given = give_blocks(joined(values), blocks)
            write_buckets(uri, as_buckets(ids, values, given, len(centroids), dtype), self.run.folder)
        return np.diff(read_ends(uri, 0, note["blocks"])) // dtype.itemsize

    def add(self, summaries: Iterable[np.ndarray]) -> np.ndarray:
        return sum(summaries, np.zeros(1, np.int64))

    def after(self, state: State, total: np.ndarray) -> dict[str, Any]:
        return {**state, "sizes": total}


@dataclasses.dataclass(frozen=True)
class _ComparePairs(Step):
    """Some blocks, or a piece of a large one → the pairs that are near."""

    run: Deduplicating

    def items(self, state: State) -> Iterator[tuple[int, tuple[int, int, int]]]:
        return iter(enumerate(tasks(state["sizes"].tolist())))

    def do(self, item: tuple[int, tuple[int, int, int]]) -> Counter:
        number, (first, stop, piece) = item
        run, uri = self.run, self.run.work("pairs", number)
        if read_note(uri) is None:
            files = run.works("blocks", len(run.first_parts))
            blocks = read_blocks(files, first, stop, piece, run.record)
            found = [compare(pieces, run.rows.threshold, run.rows.rule) for pieces in blocks]
            columns = [np.concatenate(column) for column in zip(*map(dataclasses.astuple, found), strict=True)]
            write_buckets(uri, columns, run.folder)
        return Counter(tasks=1)

    def after(self, state: State, total: Counter) -> dict[str, Any]:
        return {**{name: value for name, value in state.items() if name != "sizes"}, "tasks": total["tasks"]}


def near_steps(run: Deduplicating) -> list[Step]:
    """Return the steps that find near duplicates."""
    return [_Sample(run), _MakeBlocks(run), _SpreadRows(run), _ComparePairs(run), *member_steps(run)]
