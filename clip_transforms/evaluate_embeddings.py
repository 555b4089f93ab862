"""EvaluateEmbeddings and evaluate_embeddings: a finished dataset → how well its embeddings know what is right."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomies
from clip_transforms.evaluation.rows import Source
from clip_transforms.evaluation.settings import Evaluation, check_one_class
from clip_transforms.parts.checkpoint import checkpoint_of
from clip_transforms.parts.dataset import Dataset, check_rows
from clip_transforms.parts.footers import has_captions
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.evaluate_steps import Evaluating, runs_of
from clip_transforms.run.evaluate_work import PER_CLASS, PER_GROUP, RECORD, EvaluationWork
from clip_transforms.run.job import write_taxonomies
from clip_transforms.run.new_output import WORK, NewOutput
from clip_transforms.run.over_parts import OverParts, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.select.row_files import RowFileError
from clip_transforms.select.selection import Selection, SelectionError

TAXONOMIES = "taxonomies"


def evaluate_embeddings(
    dataset: storage.Place,
    output: storage.Place,
    *,
    measure: str | Sequence[str] = (),
    taxonomy: Taxonomies = (),
    truth_column: str | None = None,
    truth: storage.Place | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    test: storage.Places = (),
    test_fraction: float | None = None,
    seed: int | None = None,
    selection: storage.Places = (),
    model: ClipSpec | storage.Place | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure what the embeddings of a dataset know, in this process, without Beam.

    It makes the same checks and bytes as `EvaluateEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the evaluation, new or of the same command; a text or a Path.
        measure: what to measure, one or several: `zeroshot`, the labels of images; `retrieval`, captions of images and
            images of captions; `probe`, logistic regression on image embeddings. By default zeroshot if there is a
            truth, a group column or a taxonomy, else retrieval.
        taxonomy: taxonomies for zeroshot: names that the dataset has, files or folders, or Taxonomy objects; one or
            several, which are compared over the same rows. By default the only one of the dataset.
        truth_column: column of the dataset with the class of a sample, as a name or as an index into the first
            taxonomy. By default `cls`, if there is such a column.
        truth: Parquet or CSV file with `key`, or `shard` and `row`; and `class`, or `classes` for a list.
        group_column: column of the dataset whose values are groups.
        split_column: column of the dataset that says `train`, `val` or `test`, for a probe.
        test: selections whose rows test a probe, while all others train it; see `Selection.open`.
        test_fraction: share of the rows that tests a probe, 0 to 1, if nothing says which rows do; 0.2 by default.
        seed: seed of the random split; 0 by default.
        selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
        model: the dataset's own checkpoint, if it was moved; it embeds classes that the dataset has not embedded.
        overwrite: whether what another command made in `output` may be replaced.
    Returns:
        The content of `metrics.json`.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(
        EvaluateEmbeddings(
            dataset,
            output,
            measure=measure,
            taxonomy=taxonomy,
            truth_column=truth_column,
            truth=truth,
            group_column=group_column,
            split_column=split_column,
            test=test,
            test_fraction=test_fraction,
            seed=seed,
            selection=selection,
            model=model,
            overwrite=overwrite,
        ).run_here()
    )


class EvaluateEmbeddings(OverParts):
    """Pipeline → PCollection[what the last measure found in a piece of its work]."""

    @same_arguments(evaluate_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `evaluate_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_evaluation, **arguments))

    def begin(self, plan: EvaluationPlan, folder: RunFolder) -> EvaluationWork:
        """Make the output ready, and leave parts, truth and taxonomies in the run's folder."""
        plan.new.begin(folder)
        dataset, asked = plan.dataset, plan.asked
        runs = runs_of(sorted(dataset.digests.items()), [dataset.rows[part] for part in dataset.parts])
        write_items(folder.uri, runs)
        write_taxonomies(folder.uri, [of.taxonomy for of in asked.classes if of.taxonomy])
        truth = asked.truth
        if truth and asked.file:
            asked.file.settle(dataset, folder.uri)
            truth = dataclasses.replace(truth, folder=folder.uri)
        for name in _folders_of(asked):
            storage.make_folder(storage.join(plan.output, WORK, name))
        test = dataclasses.replace(plan.test).settled(storage.join(folder.uri, "test")) if plan.test else None
        run = Evaluating(
            new=plan.new,
            source=Source(dataset.uri, plan.selection.settled(folder.uri), truth, asked.group_column),
            classes=tuple(dataclasses.replace(of, taxonomy=None) for of in asked.classes),
            checkpoint=plan.checkpoint,
            test=test,
            split_column=asked.split_column,
            test_fraction=asked.test_fraction,
            seed=asked.seed,
            all_captions=has_captions(dataset.uri),
            runs=len(runs),
            folder=folder.uri,
        )
        return EvaluationWork(run, asked.measures, dataset.fingerprint)


def _folders_of(asked: Evaluation) -> list[str]:
    """Return the folders below `_work/`."""
    scores = [f"scores/{of.name}" for of in asked.classes] if asked.truth and asked.truth.several else []
    kinds = {"zeroshot": scores, "retrieval": ["pairs"], "probe": ["probe"]}
    return [name for measure in asked.measures for name in kinds[measure]]


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that could start.

    Attributes:
        dataset: the dataset.
        asked: what is asked for.
        selection: which rows are looked at.
        test: which rows test a probe; None if a column or a random split says so.
        checkpoint: what embeds the classes that the dataset has not; None if it has all.
        new: the output.
    """

    dataset: Dataset
    asked: Evaluation
    selection: Selection
    test: Selection | None
    checkpoint: Checkpoint | None
    new: NewOutput

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `metrics.json` if the evaluation is there already, with its tables."""
        content = self.new.finished()
        tables = (storage.join(self.output, name) for name in (PER_CLASS, PER_GROUP))
        return content if content and all(storage.exists(uri) for uri in tables) else None


def plan_evaluation(
    dataset: storage.Place,
    output: storage.Place,
    *,
    selection: storage.Places = (),
    test: storage.Places = (),
    model: ClipSpec | storage.Place | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> EvaluationPlan:
    """Check the arguments of `evaluate_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    asked = Evaluation.of(opened, test=bool(test), **settings)
    check_one_class(asked)
    if "retrieval" in asked.measures and has_captions(opened.uri):
        check_rows(opened.uri, opened.parts, "captions")
    checkpoint = None
    if model is not None or any(of.taxonomy for of in asked.classes):
        spec = None if model is None else ClipSpec.of(model)
        checkpoint = checkpoint_of(opened.uri, existing_dataset(opened.uri), spec)
    chosen = Selection.open(opened, selection)
    tests = _test_rows(opened, test) if test else None
    command = {"verb": "evaluate", **asked.settings}
    command |= {"selection": list(chosen.identity)} if chosen.identity else {}
    command |= {"test": list(tests.identity)} if tests else {}
    names = {"record": RECORD, "folders": (TAXONOMIES,) if checkpoint else (), "files": (PER_CLASS, PER_GROUP)}
    new = NewOutput.of(output, opened, command, overwrite, **names)
    return EvaluationPlan(opened, asked, chosen, tests, checkpoint, new)


def _test_rows(dataset: Dataset, places: storage.Places) -> Selection:
    """Open the selections that name the test rows.

    Raises:
        SelectionError: as `Selection.open` does, naming the flag.
    """
    try:
        return Selection.open(dataset, places)
    except (SelectionError, RowFileError) as error:
        raise SelectionError(str(error).replace("--selection", "--test")) from None
