"""The steps of an export: count the rows of each part, then write them in the layout that is asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.exports import clip_retrieval
from clip_transforms.exports.clip_retrieval import ClipRetrieval
from clip_transforms.exports.faiss_index import write_faiss
from clip_transforms.exports.groups import Group, groups_of
from clip_transforms.exports.lance_table import write_lance
from clip_transforms.exports.npy import Matrices, write_npy
from clip_transforms.exports.plan import Layout
from clip_transforms.exports.rows import ExportRows
from clip_transforms.exports.webdataset import WebDataset
from clip_transforms.parts.footers import part_uri, read_footer
from clip_transforms.parts.reader import DatasetError
from clip_transforms.run.name_lost import NameLost
from clip_transforms.run.new_output import NewOutput, has_changed
from clip_transforms.run.over_parts import Step, read_items
from clip_transforms.run.uid_steps import SortUids, WriteUids
from clip_transforms.shards.read_again import read_again
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.shards.wanted import Wanted

_SHARDS_PER_TASK = 4  # consecutive parts are joined until they make so many; only the last one may then be small


def entries_of(new: NewOutput) -> dict[str, int]:
    """Return folder → number of its entries; for a file 1, if it is there."""
    entries = {folder: len(storage.names_in(storage.join(new.uri, folder))) for folder in new.folders}
    return entries | {name: 1 for name in new.files if storage.exists(storage.join(new.uri, name))}


@dataclasses.dataclass(frozen=True)
class Exporting:
    """One run; it is sent to every worker."""

    new: NewOutput
    layout: Layout
    rows: ExportRows
    reader: ReaderOptions
    folder: str

    @property
    def places(self) -> tuple[str, str]:
        """URI of the output, and of the run's temporary folder."""
        return self.new.uri, self.folder

    @property
    def steps(self) -> list[Step]:
        """Count the rows of each part, then write them."""
        write: dict[str, list[Step]] = {
            "webdataset": [_WriteTars(self), NameLost(self)],
            "clip_retrieval": [_WriteVectors(self)],
            "datacomp_uids": [WriteUids(self), SortUids(self)],
        }
        return [_Count(self), *write.get(self.layout.name, [_WriteWhole(self)])]

    def finish(self, state: State) -> Mapping[str, Any]:
        """Write `export.json` and `_SUCCESS`."""
        left_out = {reason: number for reason, number in sorted(state.left_out.items()) if number}
        if state.selected != state.exported + sum(left_out.values()):
            raise RuntimeError(
                f"the counts do not add up: {state.selected} rows selected, {state.exported} exported, left out "
                f"{left_out}; please report this"
            )
        self._check_unchanged()
        made_by = {name: value for name, value in self.new.command.items() if name not in ("format", "digest")}
        counts = {"selected": state.selected, "exported": state.exported, "left_out": left_out, "files": state.files}
        content = {"made_by": made_by, "counts": counts, "entries": entries_of(self.new)}
        return self.new.finish(content, self.folder)

    def _check_unchanged(self) -> None:
        """Refuse a dataset that changed while it was read: parts of two states must not become one export."""
        if has_changed(self.rows.dataset, self.new.command["digest"], self.layout.classes):
            raise DatasetError(
                f"{self.rows.dataset} has changed while this command read it; give the command again, with "
                "--overwrite, when nothing writes to the dataset"
            )

    def read(self, part: str, wanted: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, bytes | None, str]]:
        """Read pictures of a part again."""
        footer = read_footer(part_uri(self.rows.dataset, "embeddings", part))
        shard = footer["shard"] if footer else ""
        return iter(read_again(part, shard, [Wanted(*one) for one in wanted], self.reader, self.folder))


@dataclasses.dataclass(frozen=True)
class State:
    """What is known so far.

    Attributes:
        taken: part → number of its rows that are taken; only parts with some.
        selected: number of rows of the selection.
        exported: number of rows that were exported, or that will be if none is lost.
        left_out: reason → number of rows.
        files: number of files that were written.
    """

    taken: Mapping[str, int]
    selected: int
    exported: int
    left_out: Mapping[str, int]
    files: int = 1

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Return (part, number of its rows that are taken), in the dataset's order."""
        return sorted(self.taken.items())

    def groups(self, per_shard: int) -> list[Group]:
        """Return the groups of parts that become tars."""
        return groups_of(self.parts, _SHARDS_PER_TASK * per_shard, per_shard)

    def without(self, lost: Mapping[str, int], files: int = 1) -> State:
        """Return the state when some more rows could not be exported."""
        left = Counter(self.left_out) + Counter(lost)
        return dataclasses.replace(self, exported=self.exported - sum(lost.values()), left_out=left, files=files)


@dataclasses.dataclass(frozen=True)
class _Count(Step):
    """Part → {part: counts of its rows}."""

    run: Exporting
    threaded = True

    def items(self, state: None) -> Iterator[str]:
        return read_items(self.run.folder)

    def do(self, item: str) -> tuple[str, Counter]:
        return item, self.run.rows.count(item)

    def summarise(self, result: tuple[str, Counter]) -> tuple[dict[str, int], Counter]:
        part, counts = result
        return ({part: counts["taken"]} if counts["taken"] else {}), counts

    def add(self, summaries: Iterable[tuple[dict[str, int], Counter]]) -> tuple[dict[str, int], Counter]:
        taken, total = dict[str, int](), Counter[str]()
        for of_parts, counts in summaries:
            taken |= of_parts
            total.update(counts)
        return taken, total

    def after(self, state: None, total: tuple[dict[str, int], Counter]) -> State:
        taken, counts = total
        lost = {name: number for name, number in counts.items() if name.startswith("without ")}
        return State(taken, counts["selected"], counts["taken"], lost)


@dataclasses.dataclass(frozen=True)
class _WriteTars(Step):
    """(group of parts, number of tars in all) → what became of its rows."""

    run: Exporting
    threaded = True

    def items(self, state: State) -> Iterator[tuple[Group, int]]:
        groups = state.groups(self.run.layout.per_shard)
        return ((group, sum(g.files for g in groups)) for group in groups)

    def do(self, item: tuple[Group, int]) -> Counter:
        run, (group, shards) = self.run, item
        layout = run.layout
        tars = WebDataset(run.rows, *run.places, layout.per_shard, shards, layout.columns, layout.all_captions)
        return tars.write(group, run.read)

    def after(self, state: State, total: Counter) -> State:
        lost = {name.removeprefix("lost."): n for name, n in total.items() if name.startswith("lost.")}
        return state.without(lost, total["shards"])


@dataclasses.dataclass(frozen=True)
class _WriteVectors(Step):
    """(group of parts, number of groups) → number of rows."""

    run: Exporting
    threaded = True

    def items(self, state: State) -> Iterator[tuple[Group, int]]:
        groups = groups_of(state.parts, clip_retrieval.ROWS_PER_FILE, 1 << 62)  # a file each
        return ((group, len(groups)) for group in groups)

    def do(self, item: tuple[Group, int]) -> Counter:
        run, (group, files) = self.run, item
        layout = run.layout
        folders = ClipRetrieval(run.rows, *run.places, files, layout.modalities, layout.columns, layout.embed_dim)
        return Counter(rows=folders.write(group), files=1)

    def after(self, state: State, total: Counter) -> State:
        return dataclasses.replace(state, exported=total["rows"], files=total["files"])


@dataclasses.dataclass(frozen=True)
class _WriteWhole(Step):
    """[(part, number of rows)] → number of files; one worker goes through all parts."""

    run: Exporting

    def items(self, state: State) -> Iterator[list[tuple[str, int]]]:
        yield state.parts

    def do(self, item: list[tuple[str, int]]) -> Counter:
        run, layout = self.run, self.run.layout
        if layout.name == "lance":
            parts = [part for part, _ in item] or list(read_items(run.folder))[:1]  # of no rows the columns remain
            write_lance(run.rows, parts, layout.stored, run.places)
            return Counter(files=1)
        folder, dtype = storage.join(run.new.uri, layout.folders[0]), np.dtype(layout.dtype)
        matrices = Matrices(run.rows, item, layout.modalities, layout.embed_dim, dtype, folder, run.folder)
        write_npy(matrices) if layout.name == "npy" else write_faiss(matrices)
        return Counter(files=len(layout.modalities))

    def after(self, state: State, total: Counter) -> State:
        return dataclasses.replace(state, files=total["files"])
