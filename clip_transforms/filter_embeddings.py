"""FilterEmbeddings and filter_embeddings: a finished dataset → a selection of its rows, by SQL, rank or sample."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_uri
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import OverParts, Step, read_items, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.select.cut import Search, histogram, place_of_fraction, value_of
from clip_transforms.select.filtering import Filter
from clip_transforms.select.selection import PARTS, RECORD, committed_counts, record_of, write_part
from schemas.provenance import Footer


def filter_embeddings(
    dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **conditions: Any
) -> dict[str, Any]:
    """Write a selection of a dataset's rows, in this process, without Beam.

    It makes the same checks and bytes as `FilterEmbeddings`. The conditions apply in the order below.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the selection, new or of the same command; a text or a Path.
        overwrite: whether a selection that another command made there may be replaced.
        **conditions:
            selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
            where: a DuckDB expression over a row's columns and, for each taxonomy, a struct of its name, such as
                `clip_score >= 0.28 and animals.label = 'cat'`. Null is not true.
            sample_fraction, seed: a seeded sample of the rows, 0 to 1; a larger one contains every smaller one.
            top_fraction: part of the rows that stays, 0 to 1, by DataComp's rule: with n rows, all whose value is at
                least the value at place int(n · top_fraction), counted from 0 and from the largest, nulls last.
            top_count: number of rows that stay; ties by (shard, row).
            by: a DuckDB expression that ranks the rows for these two; `clip_score` by default.
    Returns:
        The content of `selection.json`.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(FilterEmbeddings(dataset, output, overwrite=overwrite, **conditions).run_here())


class FilterEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of a part of the selection, its counts)]."""

    def __init__(self, dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **conditions: Any):
        """Take the arguments of `filter_embeddings`; applying the transform looks at the dataset."""
        super().__init__(lambda: plan_filter(dataset, output, overwrite=overwrite, **conditions))

    def begin(self, plan: FilterPlan, folder: RunFolder) -> _Filtering:
        """Make the output ready, and leave the parts in the run's folder."""
        plan.new.begin(folder.uri)
        write_items(folder.uri, sorted(plan.dataset.digests.items()))
        rows = dataclasses.replace(plan.filter, selection=plan.filter.selection.settled(folder.uri))
        return _Filtering(plan.new, rows, plan.dataset.fingerprint, folder.uri)


@dataclasses.dataclass(frozen=True)
class FilterPlan:
    """A filter that could start.

    Attributes:
        dataset: the dataset.
        filter: its conditions.
        new: the output.
    """

    dataset: Dataset
    filter: Filter
    new: NewOutput

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `selection.json` if the selection is there already."""
        return self.new.finished(self.dataset.parts, PARTS)


def plan_filter(
    dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **conditions: Any
) -> FilterPlan:
    """Check the arguments of `filter_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    rows = Filter.of(opened, **conditions)
    command = {"verb": "filter", **rows.settings}
    return FilterPlan(opened, rows, NewOutput.of(output, opened, command, overwrite, record=RECORD, folders=(PARTS,)))


@dataclasses.dataclass(frozen=True)
class _Filtering:
    """One run; it is sent to every worker."""

    new: NewOutput
    filter: Filter
    fingerprint: str
    folder: str

    @property
    def dataset(self) -> str:
        return self.new.command["dataset"]

    @property
    def steps(self) -> list[Step]:
        """Find the cut, 16 bits a pass, and the parts of rows that are equal to it; then write the parts."""
        passes = 8 * self.filter.dtype.itemsize // 16 if self.filter.by else 0
        ties = [_CountTies(self)] if self.filter.top_count is not None else []
        return [*(_Count(self, level) for level in range(passes)), *ties, _WriteParts(self)]

    def finish(self, state: tuple[_Cut | None, Counter]) -> Mapping[str, Any]:
        """Write `selection.json` and `_SUCCESS`."""
        cut, counts = state
        made_by = {"verb": "filter", **self.filter.settings}
        content = record_of(self.dataset, self.fingerprint, made_by, counts)
        return self.new.finish(content | ({"cut": cut.described(self.filter.dtype)} if cut else {}), self.folder)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Where the ranked rows are cut.

    Attributes:
        n: number of ranked rows, with those whose value is null or NaN.
        values: number of those with a value.
        search: the search for the value at the cut; None if every row with a value stays.
        ties: number of rows that are equal to the cut, once it is known.
        quotas: part → how many of its rows that are equal to the cut stay; only parts with such rows, None for all.
    """

    n: int
    values: int
    search: Search | None
    ties: int = 0
    quotas: Mapping[str, int] | None = None

    @classmethod
    def begun(cls, n: int, values: int, rows: Filter) -> _Cut:
        """Begin the search when the numbers of rows and values are known."""
        place = rows.top_count - 1 if rows.top_count is not None else place_of_fraction(n, rows.top_fraction or 0.0)
        return cls(n, values, Search(place) if 0 <= place < values else None)

    def described(self, dtype: np.dtype) -> dict[str, Any]:
        """Return what `selection.json` says of the cut."""
        threshold: float | str | None = None if self.search is None else value_of(self.search.prefix, dtype)
        if threshold in (float("inf"), float("-inf")):
            threshold = str(threshold)  # JSON has no infinity
        above = self.values if self.search is None else self.search.above
        return {"n": self.n, "values": self.values, "threshold": threshold, "above": above, "ties": self.ties}


@dataclasses.dataclass(frozen=True)
class _Count(Step):
    """(part, search) → how many values have which 16 bits."""

    run: _Filtering
    level: int
    threaded = True

    def items(self, state: _Cut | None) -> Iterator[tuple[str, Search]]:
        search = state.search if state else Search(0)
        return ((part, search) for part, _ in read_items(self.run.folder) if search)

    def do(self, item: tuple[str, Search]) -> tuple[int, int, np.ndarray]:
        part, search = item
        found = self.run.filter.candidates(self.run.dataset, part)
        return found.ranked, len(found.keys), histogram(found.keys, search.prefix, self.level)

    def add(self, summaries: Iterable[tuple[int, int, np.ndarray]]) -> tuple[int, int, np.ndarray]:
        ranked, values, counts = 0, 0, np.zeros(1 << 16, np.int64)
        for summary in summaries:
            ranked, values = ranked + summary[0], values + summary[1]
            counts += summary[2]
        return ranked, values, counts

    def after(self, state: _Cut | None, total: tuple[int, int, np.ndarray]) -> _Cut:
        ranked, values, counts = total
        cut = state or _Cut.begun(ranked, values, self.run.filter)
        if cut.search is None:
            return cut
        search = cut.search.narrowed(counts)
        return dataclasses.replace(cut, search=search, ties=int(counts[search.prefix & 0xFFFF]))


@dataclasses.dataclass(frozen=True)
class _CountTies(Step):
    """(part, key) → [(shard, row of its first tie, part, number of ties)], if not all of the ties can stay."""

    run: _Filtering
    threaded = True

    def items(self, state: _Cut) -> Iterator[tuple[str, int]]:
        search = state.search
        if search and search.above + state.ties > (self.run.filter.top_count or 0):
            yield from ((part, search.prefix) for part, _ in read_items(self.run.folder))

    def do(self, item: tuple[str, int]) -> list[tuple[str, int, str, int]]:
        part, key = item
        found = self.run.filter.candidates(self.run.dataset, part, ["shard", "row"])
        ties = found.places[found.keys == key]
        if not len(ties):
            return []
        first = found.table.slice(int(ties[0]), 1).to_pylist()[0]
        return [(first["shard"], first["row"], part, len(ties))]

    def add(self, summaries: Iterable[list]) -> list:
        return [tie for ties in summaries for tie in ties]

    def after(self, state: _Cut, total: list[tuple[str, int, str, int]]) -> _Cut:
        if state.search is None or not total:
            return state
        left, quotas = (self.run.filter.top_count or 0) - state.search.above, {}
        for _, _, part, ties in sorted(total):
            quotas[part] = min(ties, left)
            left -= quotas[part]
        return dataclasses.replace(state, quotas=quotas)


@dataclasses.dataclass(frozen=True)
class _WriteParts(Step):
    """(part, digest, key of the cut, quota of the part, cut) → (URI of the selection's part, counts)."""

    run: _Filtering
    threaded = True

    def items(self, state: _Cut | None) -> Iterator[tuple[str, str, int | None, int | None]]:
        key = state.search.prefix if state and state.search else None
        quotas = state.quotas if state and state.quotas is not None else {}
        for part, digest in read_items(self.run.folder):
            yield part, digest, key, quotas.get(part)

    def do(self, item: tuple[str, str, int | None, int | None]) -> tuple[str, dict[str, int]]:
        part, digest, cut, quota = item
        run = self.run
        counts = committed_counts(run.new.uri, part, digest)
        if counts is None:
            found = run.filter.candidates(run.dataset, part, ["key", "shard", "row"])
            kept, counts = found.kept(cut, quota)
            footer: Footer = {"fingerprint": run.fingerprint, "digest": digest, "counts": dict(counts)}
            write_part(run.new.uri, part, kept, footer, run.folder)
        return part_uri(run.new.uri, PARTS, part), dict(counts)

    def summarise(self, result: tuple[str, Mapping[str, int]]) -> Counter:
        return Counter(result[1])

    def after(self, state: _Cut | None, total: Counter) -> tuple[_Cut | None, Counter]:
        return state, total
