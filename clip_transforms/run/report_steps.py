"""The steps of a report: count the rows of each part, choose those that are shown, and look at these."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.pages import choosing, counting, looked, projection
from clip_transforms.pages.facts import Facts
from clip_transforms.pages.report_page import report_page
from clip_transforms.parts.reader import DatasetError, read_rejects, read_table
from clip_transforms.run.new_output import has_changed
from clip_transforms.run.over_parts import Step, read_items
from clip_transforms.run.run_folder import remove_if_empty, remove_run_folder
from clip_transforms.select.sample import hashes
from clip_transforms.select.selection import Selection
from clip_transforms.shards.read_again import read_again
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.shards.wanted import Wanted

GROUPS = "groups"  # the folder in which `deduplicate` leaves its groups
_MAP_PARTS, _PICTURED_PARTS = 100, 32  # the most parts that the points of a map, and their pictures, are drawn from
_LOOKED = "looked"
Part = Sequence[Any]  # name, URI of its shard, number of its rows


@dataclasses.dataclass(frozen=True)
class Reporting:
    """One run; it is sent to every worker.

    Attributes:
        output: URI of the page.
        work: URI of a folder beside it, which holds the run's temporary folder and goes at the end.
        facts: what the dataset says of itself.
        selection: the rows that are looked at.
        duplicates: URI of a selection that `deduplicate` wrote; empty without one.
        reader: how the sources were read.
        pictures: whether the page has pictures.
        digest: digest of the dataset's parts.
        labels: taxonomy → digest of its classes.
        folder: URI of the run's temporary folder, in which the parts are listed.
    """

    output: str
    work: str
    facts: Facts
    selection: Selection
    duplicates: str
    reader: ReaderOptions
    pictures: bool
    digest: str
    labels: Mapping[str, str]
    folder: str

    @property
    def steps(self) -> list[Step]:
        """Count, choose, look."""
        return [_Count(self), _Choose(self), _Look(self)]

    def parts(self) -> Iterator[Part]:
        """Yield the parts."""
        return read_items(self.folder)

    def rows(self, part: str, columns: Sequence[str]) -> pa.Table:
        """Read columns of the rows of a part that are looked at; `row` must be among them."""
        table = read_table(self.facts.dataset, part, columns, self.facts.taxonomies)
        return table.filter(pa.array(self.selected(part, table))) if self.selection.places else table

    def selected(self, part: str, table: pa.Table) -> np.ndarray:
        """Say which rows of a part are looked at: bool [n]."""
        return self.selection.mask(part, table.column("row"))

    def looked(self, part: str) -> str:
        """URI of the file that carries the rows of a part that are shown."""
        return storage.join(self.folder, _LOOKED, f"{part}.parquet")

    def finish(self, state: _State) -> Mapping[str, Any]:
        """Write the page, and return its counts."""
        files = (self.looked(part) for part, *_ in self.parts())
        rows = list(looked.read_looked(uri for uri in files if storage.exists(uri)))
        if has_changed(self.facts.dataset, self.digest, self.labels):
            raise DatasetError(
                f"{self.facts.dataset} has changed while this command read it; give the command again when nothing "
                "writes to the dataset"
            )
        page = report_page(self.facts, state.counts, state.chosen, rows, self.pictures)
        storage.write_bytes(self.output, page, self.folder)
        remove_run_folder(self.folder)
        remove_if_empty(self.work)
        return {"bytes": len(page), **state.seen}


@dataclasses.dataclass(frozen=True)
class _State:
    """What is known so far.

    Attributes:
        counts: sum of the counts of all parts.
        chosen: rows that are shown.
        seen: number of rows that were looked at, and of pictures that are lost.
    """

    counts: counting.Counts
    chosen: choosing.Chosen = dataclasses.field(default_factory=dict)
    seen: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Count(Step):
    """Part → its counts."""

    run: Reporting
    threaded = True

    def items(self, state: None) -> Iterator[str]:
        return (part for part, *_ in self.run.parts())

    def do(self, item: str) -> counting.Counts:
        facts = self.run.facts
        rows = self.run.rows(item, [*counting.COLUMNS, *counting.label_columns(facts.taxonomies)])
        counts = counting.count_rows(rows, facts.taxonomies, facts.side)
        return counts + counting.count_rejects(read_rejects(facts.dataset, item))

    def after(self, state: None, total: counting.Counts) -> _State:
        return _State(total)


@dataclasses.dataclass(frozen=True)
class _Choose(Step):
    """Part, or file of groups of duplicates → the rows of it that may be shown."""

    run: Reporting
    threaded = True

    def items(self, state: _State) -> Iterator[tuple[str, Mapping[str, Sequence[str]] | None]]:
        ranked = {name: counting.most_frequent(state.counts, name) for name in self.run.facts.taxonomies}
        shown = choosing.shown_classes(ranked)
        for part, *_ in self.run.parts():
            yield part, shown
        if self.run.duplicates:
            folder = storage.join(self.run.duplicates, GROUPS)
            yield from ((storage.join(folder, name), None) for name in storage.names_in(folder, ".parquet"))

    def do(self, item: tuple[str, Mapping[str, Sequence[str]] | None]) -> choosing.Chosen:
        place, shown = item
        if shown is None:
            return choosing.choose_groups(looked.read_groups(place))
        columns = ["shard", "row", "clip_score", *counting.label_columns(self.run.facts.taxonomies)]
        rows = choosing.choose_rows(self.run.rows(place, columns), shown)
        return choosing.best_of([rows, choosing.choose_rejects(read_rejects(self.run.facts.dataset, place))])

    def add(self, summaries: Iterable[choosing.Chosen]) -> choosing.Chosen:
        return choosing.best_of(summaries)

    def after(self, state: _State, total: choosing.Chosen) -> _State:
        return dataclasses.replace(state, chosen=total)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is looked at in a part.

    Attributes:
        part, shard: the part, and its shard.
        rows: places of the rows with a picture on a sheet.
        mapped, small: parts of its rows that are on the map, and there with a picture, 0 to 1.
    """

    part: str
    shard: str
    rows: Sequence[int]
    mapped: float
    small: float


@dataclasses.dataclass(frozen=True)
class _Look(Step):
    """Part with rows that are shown → number of these, in a file beside it."""

    run: Reporting
    threaded = True

    def items(self, state: _State) -> Iterator[_Task]:
        wanted, shares = choosing.pictured(state.chosen), self._shares(state.counts["rows",])
        for part, shard, _ in self.run.parts():
            task = _Task(part, shard, wanted.get(shard, ()), *shares.get(part, (0.0, 0.0)))
            if task.rows or task.mapped:
                yield task

    def _shares(self, rows: int) -> dict[str, tuple[float, float]]:
        """Return part → shares of its rows for the map; a few more than needed, since the page takes the first ones."""
        parts = sorted(self.run.parts(), key=lambda part: hashlib.sha256(part[0].encode()).digest())
        drawn, total = parts[:_MAP_PARTS], sum(part[2] for part in parts) or 1
        of_map, of_pictures = (
            rows * sum(part[2] for part in some) / total or 1.0 for some in (drawn, drawn[:_PICTURED_PARTS])
        )
        mapped, small = 1.2 * projection.POINTS / of_map, 1.2 * projection.PICTURES / of_pictures
        return {part[0]: (mapped, small if place < _PICTURED_PARTS else 0.0) for place, part in enumerate(drawn)}

    def do(self, item: _Task) -> Counter:
        run, vectors = self.run, f"{self.run.facts.modality}_embedding"
        columns = [*looked.COLUMNS, *counting.label_columns(run.facts.taxonomies)]
        columns += [vectors] if item.mapped else []
        table = read_table(run.facts.dataset, item.part, columns, run.facts.taxonomies)
        rows = look(table, item, run.selected(item.part, table), vectors, run)
        if rows.num_rows:
            looked.write_looked(run.looked(item.part), rows, run.folder)
        return Counter(lost=sum(1 for reason in rows.column("lost").to_pylist() if reason not in looked.NOT_LOST))

    def after(self, state: _State, total: Counter) -> _State:
        return dataclasses.replace(state, seen={"rows": state.counts["rows",], "lost": total["lost"]})


def look(table: pa.Table, task: _Task, selected: np.ndarray, vectors: str, run: Reporting) -> pa.Table:
    """Take the rows of a part that are shown, and read their pictures."""
    places = table.column("row").to_numpy()
    ranks = hashes(task.shard, places, 0)
    fractions = (ranks >> np.uint64(11)).astype(np.float64) * 2.0**-53
    can = selected & table.column(vectors).is_valid().to_numpy() if task.mapped else np.zeros(len(places), bool)
    mapped = can & (fractions < task.mapped)
    looks = looked.Looks(np.isin(places, task.rows), mapped, mapped & (fractions < task.small), ranks)
    thumbnails = looked.Thumbnails(run.facts.max_pixels, run.facts.exif_orientation)

    def read(wanted: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, bytes | None, str]]:
        return iter(read_again(task.part, task.shard, [Wanted(*one) for one in wanted], run.reader, run.folder))

    return looked.look_at(table, looks, vectors, thumbnails, read if run.pictures else None)
