"""DeduplicateEmbeddings and deduplicate_embeddings: a finished dataset → a selection without duplicates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.beam import beam
from clip_transforms.run.deduplicate_steps import GROUPS, KINDS, Deduplicating, exact_steps, runs_of_parts
from clip_transforms.run.near_steps import near_steps
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import OverParts, Step, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.select.duplicates import COMPONENTS, Duplicates
from clip_transforms.select.selection import PARTS, RECORD, record_of


def deduplicate_embeddings(
    dataset: storage.Place,
    output: storage.Place,
    *,
    by: str = "exact",
    keep: str | None = None,
    threshold: float | None = None,
    rule: str | None = None,
    recall: float | None = None,
    seed: int | None = None,
    measure_recall: int | None = None,
    selection: storage.Places = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a selection of a dataset's rows without duplicates, and the groups, in this process, without Beam.

    It makes the same checks and bytes as `DeduplicateEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the selection, new or of the same command; a text or a Path.
        by: `exact` for equal image files, which is the default; or what must be near: `image`, `caption` or `pair` for
            both.
        keep: who stays of a group: `score`, the largest clip_score, then the most pixels, then the first (shard, row);
            `pixels`, the most pixels, then the score; or `first`. Null and NaN come after every value.
        threshold: smallest cosine of near duplicates, 0.95 by default.
        rule: `components`: rows that are near each other, over any number of rows between, are one group, of which one
            row stays. `semdedup`: SemDeDup's own rule within a block; more than one row of a group may stay.
        recall: share of the pairs at the threshold that shall be found, 0.999 by default.
        seed: seed of the blocks.
        measure_recall: number of rows to compare with all others, to count how many of their near duplicates share
            their group.
        selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
        overwrite: whether a selection that another command made there may be replaced.
    Returns:
        The content of `selection.json`.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(
        DeduplicateEmbeddings(
            dataset,
            output,
            by=by,
            keep=keep,
            threshold=threshold,
            rule=rule,
            recall=recall,
            seed=seed,
            measure_recall=measure_recall,
            selection=selection,
            overwrite=overwrite,
        ).run_here()
    )


class DeduplicateEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of a part of the selection, its counts)]."""

    @same_arguments(deduplicate_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `deduplicate_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_duplicates, **arguments))

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, dict[str, int]]]:
        """Unpack the results, of which each task has several."""
        return super().expand(pipeline) | "Unpack" >> beam.FlatMap(lambda results: results)

    def begin(self, plan: DuplicatesPlan, folder: RunFolder) -> _Work:
        """Make the output ready, and leave the parts in the run's folder."""
        plan.new.begin(folder)
        dataset, rows = plan.dataset, plan.rows
        runs = runs_of_parts(sorted(dataset.digests.items()), [dataset.rows[part] for part in dataset.parts])
        write_items(folder.uri, runs)
        run = Deduplicating(
            new=plan.new,
            rows=dataclasses.replace(rows, selection=rows.selection.settled(folder.uri)),
            dataset=dataset.uri,
            fingerprint=dataset.fingerprint,
            most_rows=rows.most_rows(dataset),
            vectors=np.dtype((dataset.embedding_dtype, (len(rows.modalities), dataset.embed_dim))),
            first_parts=tuple(parts[0][0] for _, parts in runs),
            folder=folder.uri,
        )
        for kind in KINDS:
            storage.make_folder(run.work(kind))
        return _Work(run)


@dataclasses.dataclass(frozen=True)
class DuplicatesPlan:
    """A run that could start.

    Attributes:
        dataset: the dataset.
        rows: what counts as a duplicate.
        new: the output.
    """

    dataset: Dataset
    rows: Duplicates
    new: NewOutput

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `selection.json` if the selection is there already."""
        return self.new.finished(self.dataset.parts, PARTS)


def plan_duplicates(
    dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **settings: Any
) -> DuplicatesPlan:
    """Check the arguments of `deduplicate_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    rows = Duplicates.of(opened, **settings)
    command = {"verb": "deduplicate", **rows.settings}
    folders = (PARTS, GROUPS)
    return DuplicatesPlan(
        opened, rows, NewOutput.of(output, opened, command, overwrite, record=RECORD, folders=folders)
    )


@dataclasses.dataclass(frozen=True)
class _Work:
    """One run; it is sent to every worker."""

    run: Deduplicating

    @property
    def steps(self) -> Sequence[Step]:
        """Find equal files, or what is near."""
        return near_steps(self.run) if self.run.rows.modalities else exact_steps(self.run)

    def finish(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write `selection.json` and `_SUCCESS`."""
        run = self.run
        made_by = {"verb": "deduplicate", **run.rows.settings}
        content = record_of(run.dataset, run.fingerprint, made_by, state["counts"])
        names = ["compared", "not_compared", "groups", "grouped"]
        names += ["blocks"] if run.rows.modalities else []
        names += ["margin", "recall"] if run.rows.modalities and run.rows.rule == COMPONENTS else []
        names += ["measured"] if run.rows.measure_recall else []
        return run.new.finish(content | {"duplicates": {name: state[name] for name in names}}, run.folder)
