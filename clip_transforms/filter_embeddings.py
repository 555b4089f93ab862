"""FilterEmbeddings and filter_embeddings: a finished dataset → a selection of its rows, by SQL, rank or sample."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.reader import KEYS
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.beam import beam
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import OverParts, Step, read_items, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.select.cut import Counts, Cut, Search, histogram, place_of_fraction, sum_of
from clip_transforms.select.filtering import Filter
from clip_transforms.select.selection import PARTS, RECORD, committed_counts, record_of, write_parts
from schemas.provenance import Footer

Parts = list[tuple[str, str]]  # (part, digest)
_GROUP_ROWS = 250_000  # parts are done together up to so many rows


def filter_embeddings(
    dataset: storage.Place,
    output: storage.Place,
    *,
    selection: storage.Places = (),
    where: str | None = None,
    sample_fraction: float | None = None,
    seed: int | None = None,
    top_fraction: float | None = None,
    top_count: int | None = None,
    by: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a selection of a dataset's rows, in this process, without Beam.

    It makes the same checks and bytes as `FilterEmbeddings`. The conditions apply in the order below.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the selection, new or of the same command; a text or a Path.
        selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
        where: a DuckDB expression over a row's columns and, for each taxonomy, a struct of its name, such as
            `clip_score >= 0.28 and animals.label = 'cat'`. Null is not true.
        sample_fraction: a seeded sample of the rows, 0 to 1; a larger one contains every smaller one.
        seed: another seed gives another sample; 0 by default.
        top_fraction: part of the rows that stays, 0 to 1, by DataComp's rule: with n rows, all whose value is at least
            the value at place int(n · top_fraction), counted from 0 and from the largest, nulls last.
        top_count: number of rows that stay; ties by (shard, row).
        by: a DuckDB expression that ranks the rows for these two; `clip_score` by default.
        overwrite: whether a selection that another command made there may be replaced.
    Returns:
        The content of `selection.json`.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(
        FilterEmbeddings(
            dataset,
            output,
            selection=selection,
            where=where,
            sample_fraction=sample_fraction,
            seed=seed,
            top_fraction=top_fraction,
            top_count=top_count,
            by=by,
            overwrite=overwrite,
        ).run_here()
    )


class FilterEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of a part of the selection, its counts)]."""

    @same_arguments(filter_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `filter_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_filter, **arguments))

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, dict[str, int]]]:
        """Unpack the results, which come in groups."""
        return super().expand(pipeline) | "Unpack" >> beam.FlatMap(lambda group: group)

    def begin(self, plan: FilterPlan, folder: RunFolder) -> _Filtering:
        """Make the output ready, and leave the parts in the run's folder."""
        plan.new.begin(folder)
        write_items(folder.uri, plan.groups())
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

    def groups(self) -> list[list[tuple[str, str]]]:
        """Return the parts in groups that are done together, as (part, digest): small parts take less time so."""
        groups: list[list[tuple[str, str]]] = [[]]
        rows = 0
        for part, digest in sorted(self.dataset.digests.items()):
            rows += self.dataset.rows[part]
            if groups[-1] and (rows > _GROUP_ROWS or self.filter.reads_embeddings):
                groups.append([])
                rows = self.dataset.rows[part]
            groups[-1].append((part, digest))
        return groups

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

    def groups(self) -> Iterator[list[tuple[str, str]]]:
        """Yield groups of parts, as (part, digest)."""
        return ([(part, digest) for part, digest in group] for group in read_items(self.folder))

    @property
    def steps(self) -> list[Step]:
        """Find the cut, 16 bits a pass, and the parts of rows that are equal to it; then write the parts."""
        passes = 8 * self.filter.dtype.itemsize // 16 if self.filter.by else 0
        ties = [_CountTies(self)] if self.filter.top_count is not None else []
        return [*(_Count(self, level) for level in range(passes)), *ties, _WriteParts(self)]

    def finish(self, state: tuple[Cut | None, Counter]) -> Mapping[str, Any]:
        """Write `selection.json` and `_SUCCESS`."""
        cut, counts = state
        made_by = {"verb": "filter", **self.filter.settings}
        content = record_of(self.dataset, self.fingerprint, made_by, counts)
        return self.new.finish(content | ({"cut": cut.described(self.filter.dtype)} if cut else {}), self.folder)


@dataclasses.dataclass(frozen=True)
class _Count(Step):
    """(parts, prefix, guess) → how many values have which 16 bits."""

    run: _Filtering
    level: int
    threaded = True

    def items(self, state: Cut | None) -> Iterator[tuple[Parts, int, int | None]]:
        if state is None:
            guess = None
            for parts in self.run.groups():
                guess = self._guess(parts[0]) if guess is None else guess
                yield parts, 0, guess
        elif state.search and state.search.prefix not in state.ahead:
            yield from ((parts, state.search.prefix, None) for parts in self.run.groups())

    def _guess(self, part: tuple[str, str]) -> int | None:
        """Guess the upper 16 bits of the cut from one part. If the guess is right, the next pass is not needed."""
        found = self.run.filter.candidates(self.run.dataset, [part])
        if self.run.filter.top_fraction is None or not len(found.keys):
            return None
        place = min(place_of_fraction(found.ranked, self.run.filter.top_fraction), len(found.keys) - 1)
        return Search(place).narrowed(histogram(found.keys, 0, 0)).prefix

    def do(self, item: tuple[Parts, int, int | None]) -> Counts:
        parts, prefix, guess = item
        found = self.run.filter.candidates(self.run.dataset, parts)
        ahead = {} if guess is None else {guess: histogram(found.keys, guess, 1)}
        return Counts(found.ranked, len(found.keys), histogram(found.keys, prefix, self.level), ahead, self.level)

    def add(self, summaries: Iterable[Counts]) -> Counts:
        return sum_of(summaries, self.level)

    def after(self, state: Cut | None, total: Counts) -> Cut:
        cut = state or Cut.begun(total, self.run.filter.top_fraction, self.run.filter.top_count)
        return cut.narrowed(total)


@dataclasses.dataclass(frozen=True)
class _CountTies(Step):
    """(parts, key) → [(shard, row of its first tie, part, number of ties)], if not all of the ties can stay."""

    run: _Filtering
    threaded = True

    def items(self, state: Cut) -> Iterator[tuple[Parts, int]]:
        search = state.search
        if search and search.above + state.ties > (self.run.filter.top_count or 0):
            yield from ((parts, search.prefix) for parts in self.run.groups())

    def do(self, item: tuple[Parts, int]) -> list[tuple[str, int, str, int]]:
        parts, key = item
        found = self.run.filter.candidates(self.run.dataset, parts, ["shard", "row"])
        return [
            (first["shard"], first["row"], part, len(places))
            for part, places in found.ties(key).items()
            for first in found.left.tables[part].select(["shard", "row"]).take(places[:1]).to_pylist()
        ]

    def add(self, summaries: Iterable[list]) -> list:
        return [tie for ties in summaries for tie in ties]

    def after(self, state: Cut, total: list[tuple[str, int, str, int]]) -> Cut:
        if state.search is None or not total:
            return state
        left, quotas = (self.run.filter.top_count or 0) - state.search.above, {}
        for _, _, part, ties in sorted(total):
            quotas[part] = min(ties, left)
            left -= quotas[part]
        return dataclasses.replace(state, quotas=quotas)


@dataclasses.dataclass(frozen=True)
class _WriteParts(Step):
    """(parts, key of the cut, part → quota) → [(URI of the selection's part, counts)]."""

    run: _Filtering
    threaded = True

    def items(self, state: Cut | None) -> Iterator[tuple[Parts, int | None, dict[str, int]]]:
        key = state.search.prefix if state and state.search else None
        quotas = state.quotas if state and state.quotas is not None else {}
        for parts in self.run.groups():
            yield parts, key, {part: quotas[part] for part, _ in parts if part in quotas}

    def do(self, item: tuple[Parts, int | None, dict[str, int]]) -> list[tuple[str, dict[str, int]]]:
        parts, cut, quotas = item
        run = self.run
        counts = {part: committed_counts(run.new.uri, part, digest) for part, digest in parts}
        if missing := [(part, digest) for part, digest in parts if counts[part] is None]:
            candidates, made = run.filter.candidates(run.dataset, missing, KEYS), []
            for (part, kept, of_part), (_, digest) in zip(candidates.kept(cut, quotas), missing, strict=True):
                footer: Footer = {"fingerprint": run.fingerprint, "digest": digest, "counts": of_part}
                made.append((part, kept, footer))
                counts[part] = of_part
            write_parts(run.new.uri, made, run.folder)
        return [(part_uri(run.new.uri, PARTS, part), found or {}) for part, found in counts.items()]

    def summarise(self, result: list[tuple[str, Mapping[str, int]]]) -> Counter:
        return add(counts for _, counts in result)

    def after(self, state: Cut | None, total: Counter) -> tuple[Cut | None, Counter]:
        return state, total
