"""The steps of `deduplicate` that all its ways have in common: groups, who stays, and the parts of the selection.

Files below `_work/` of the output carry rows from step to step. Each is written whole and stays until the end, so that
the same command again makes only those that are missing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.reader import KEYS, read_table
from clip_transforms.run.new_output import WORK, NewOutput
from clip_transforms.run.over_parts import Step, read_items
from clip_transforms.select.block_rows import record_dtype
from clip_transforms.select.blocks import how_many_sampled
from clip_transforms.select.bucket_file import read_note, read_records, write_buckets
from clip_transforms.select.compared_rows import ComparedRows, compared_rows
from clip_transforms.select.duplicates import Duplicates
from clip_transforms.select.groups import (
    COLUMNS,
    Grouped,
    as_bytes,
    chosen,
    described_rows,
    hash_buckets,
    how_many_hash_buckets,
    read_rows,
    same_hash,
    write_dropped,
    write_groups,
)
from clip_transforms.select.row_ids import parts_and_rows, row_ids
from clip_transforms.select.selection import PARTS, committed_counts, write_parts
from schemas.provenance import Footer

GROUPS = "groups"
KINDS = ("sample", "blocks", "pairs", "rows", "dropped")  # folders below `_work/`
RUN_ROWS = 16_384  # rows of consecutive parts that one task reads
Part = Sequence[Any]  # place among the dataset's parts, name, digest
Run = tuple[int, list[Part]]  # number of the run of parts, and its parts
# Groups of a bucket, None for none; who stays, bool [n]; and the similarity to the kept row, float32 [n].
Chosen = tuple[Grouped | None, np.ndarray, np.ndarray]
NOTHING = None, np.empty(0, bool), np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True)
class Deduplicating:
    """What every step knows; it is sent to every worker.

    Attributes:
        new: the output.
        rows: what counts as a duplicate.
        dataset: URI of the dataset.
        fingerprint: fingerprint of the dataset.
        most_rows: a bound of the number of rows that are compared.
        vectors: dtype of the vectors of a row, with their shape.
        first_parts: for each run of parts, the place of its first part.
        folder: URI of the run's temporary folder.
    """

    new: NewOutput
    rows: Duplicates
    dataset: str
    fingerprint: str
    most_rows: int
    vectors: np.dtype
    first_parts: tuple[int, ...]
    folder: str

    def work(self, *names: str | int) -> str:
        """URI of a file or folder below `_work/`."""
        return storage.join(self.new.uri, WORK, *map(str, names))

    def works(self, kind: str, count: int) -> list[str]:
        """URIs of the files of one kind."""
        return [self.work(kind, number) for number in range(count)]

    @property
    def sampled(self) -> int:
        """Rows that the blocks, and the measuring of recall, want to see."""
        return max(how_many_sampled(self.most_rows), self.rows.measure_recall)

    @property
    def sample(self) -> np.dtype:
        """Dtype of a row of the sample."""
        return np.dtype([("hash", "<u8"), ("id", "<i8"), ("values", self.vectors)])

    @property
    def record(self) -> np.dtype:
        """Dtype of a row on its way to a block."""
        return record_dtype(self.vectors)

    def runs(self) -> Iterator[Run]:
        """Yield the runs of parts."""
        yield from read_items(self.folder)

    def run_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the run of parts that each row is in."""
        return np.searchsorted(self.first_parts, parts_and_rows(ids)[0], side="right") - 1

    def read(self, part: Part, also: Sequence[str] = ()) -> ComparedRows:
        """Read the rows of a part that are compared."""
        place, name, _ = part
        return compared_rows(self.dataset, name, place, self.rows, also)


def runs_of_parts(parts: Sequence[tuple[str, str]], rows: Sequence[int]) -> list[Run]:
    """Put consecutive parts together until they have RUN_ROWS rows.

    Args:
        parts: name and digest of each part.
        rows: rows of each part.
    """
    runs: list[Run] = []
    filled = 0
    for place, ((name, digest), count) in enumerate(zip(parts, rows, strict=True)):
        if not runs or filled + count > RUN_ROWS:
            runs.append((len(runs), []))
            filled = 0
        runs[-1][1].append((place, name, digest))
        filled += count
    return runs


@dataclasses.dataclass(frozen=True)
class OverRuns(Step):
    """A step over all runs of parts."""

    run: Deduplicating
    threaded = True

    def items(self, state: Any) -> Iterator[Run]:
        """Yield the runs of parts."""
        return self.run.runs()


class _SpreadHashes(OverRuns):
    """Run of parts → rows, to the buckets of their hashes."""

    def do(self, item: Run) -> Mapping[str, int]:
        number, parts = item
        uri = self.run.work("rows", number)
        if (note := read_note(uri)) is not None:
            return note
        found = [self.run.read(part, COLUMNS) for part in parts]
        rows = pa.concat_tables([described_rows(some, "image_sha256") for some in found])
        count = how_many_hash_buckets(self.run.most_rows)
        buckets = hash_buckets(rows.column("image_sha256"), count)
        note = {"compared": rows.num_rows, "not_compared": sum(some.left_out for some in found)}
        places = [np.flatnonzero(buckets == bucket) for bucket in range(count)]
        write_buckets(uri, (as_bytes(rows.take(some)) for some in places), self.run.folder, note)
        return note

    def after(self, state: None, total: Counter) -> dict[str, Any]:
        return {**total, "buckets": how_many_hash_buckets(self.run.most_rows)}


@dataclasses.dataclass(frozen=True)
class _WriteGroups(Step):
    """Bucket → a file of groups, and the rows that are dropped."""

    run: Deduplicating
    choose: Callable[[Deduplicating, int], Chosen]
    threaded = True

    def items(self, state: Mapping[str, Any]) -> Iterator[int]:
        return iter(range(state["buckets"]))

    def do(self, item: int) -> Mapping[str, int]:
        run, uri = self.run, self.run.work("dropped", item)
        if (note := read_note(uri)) is not None:
            return note
        grouped, kept, similarity = self.choose(run, item)
        write_groups(groups_uri(run.new.uri, item), grouped, kept, similarity, run.folder)
        ids = np.empty(0, np.int64) if grouped is None else grouped.rows.column("id").to_numpy()[~kept]
        note = {"groups": 0 if grouped is None else len(np.unique(grouped.groups)), "grouped": len(kept)}
        write_dropped(uri, ids, run.run_of(ids), len(run.first_parts), run.folder, note)
        return note

    def after(self, state: Mapping[str, Any], total: Counter) -> dict[str, Any]:
        return {**state, "groups": total["groups"], "grouped": total["grouped"]}


@dataclasses.dataclass(frozen=True)
class _WriteParts(Step):
    """Run of parts → [(URI of the selection's part, its counts)]."""

    run: Deduplicating
    threaded = True

    def items(self, state: Mapping[str, Any]) -> Iterator[tuple[int, list[Part], int]]:
        return ((number, parts, state["buckets"]) for number, parts in self.run.runs())

    def do(self, item: tuple[int, list[Part], int]) -> list[tuple[str, dict[str, int]]]:
        number, parts, buckets = item
        run = self.run
        counts = {name: committed_counts(run.new.uri, name, digest) for _, name, digest in parts}
        if missing := [part for part in parts if counts[part[1]] is None]:
            dropped = read_records(run.works("dropped", buckets), number, np.dtype("<i8"))
            made = [self._made(part, dropped) for part in missing]
            write_parts(run.new.uri, made, run.folder)
            counts |= {name: footer["counts"] for name, _, footer in made}
        return [(part_uri(run.new.uri, PARTS, name), dict(found or {})) for name, found in counts.items()]

    def summarise(self, result: list[tuple[str, dict[str, int]]]) -> Counter:
        return add(counts for _, counts in result)

    def _made(self, part: Part, dropped: np.ndarray) -> tuple[str, pa.Table, Footer]:
        """Return a part of the selection, as `write_parts` takes it."""
        run, (place, name, digest) = self.run, part
        table = read_table(run.dataset, name, KEYS)
        selected = run.rows.selection.mask(name, table.column("row"))
        kept = selected & ~np.isin(row_ids(place, np.arange(table.num_rows)), dropped)
        counts = {
            "seen": len(kept),
            "kept": int(kept.sum()),
            "dropped.selection": int((~selected).sum()),
            f"dropped.{run.rows.by}": int((selected & ~kept).sum()),
        }
        counts = {name: number for name, number in counts.items() if number or "selection" not in name}
        footer: Footer = {"fingerprint": run.fingerprint, "digest": digest, "counts": counts}
        return name, table.filter(pa.array(kept)), footer

    def after(self, state: Mapping[str, Any], total: Counter) -> dict[str, Any]:
        return {**state, "counts": total}


def groups_uri(output: str, bucket: int) -> str:
    """URI of a file of groups."""
    return storage.join(output, GROUPS, f"{bucket:05d}.parquet")


def exact_steps(run: Deduplicating) -> list[Step]:
    """Return the steps that find equal files."""
    return [_SpreadHashes(run), *last_steps(run, _choose_by_hash)]


def last_steps(run: Deduplicating, choose: Callable[[Deduplicating, int], Chosen]) -> list[Step]:
    """Return the last steps, which write the groups and the selection.

    Args:
        run: what every step knows.
        choose: finds the groups of a bucket and who stays; it can be pickled. The state holds `buckets`, their number.
    """
    return [_WriteGroups(run, choose), _WriteParts(run)]


def _choose_by_hash(run: Deduplicating, bucket: int) -> Chosen:
    grouped = same_hash(read_rows(run.works("rows", len(run.first_parts)), bucket), bucket)
    if grouped is None:
        return NOTHING
    return grouped, chosen(grouped, run.rows.keep), np.ones(len(grouped.groups), np.float32)
