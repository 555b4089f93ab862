"""EvaluateEmbeddings and evaluate_embeddings: a finished dataset → how well its embeddings know what is right."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint, ClipSpec
from clip_transforms.evaluation.rows import Source
from clip_transforms.evaluation.settings import Evaluation, check_one_class
from clip_transforms.parts.checkpoint import checkpoint_of
from clip_transforms.parts.dataset import Dataset, check_rows
from clip_transforms.parts.footers import has_captions
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.run.evaluate_record import Outcome
from clip_transforms.run.evaluate_steps import EmbedClasses, Evaluating, runs_of
from clip_transforms.run.job import write_taxonomies
from clip_transforms.run.new_output import WORK, NewOutput
from clip_transforms.run.over_parts import OverParts, Step, write_items
from clip_transforms.run.probe_steps import probe_steps
from clip_transforms.run.retrieval_steps import retrieval_steps
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.run.zeroshot_steps import zeroshot_steps
from clip_transforms.select.selection import Selection
from schemas.evaluation import per_class_schema, per_group_schema

RECORD, PER_CLASS, PER_GROUP, TAXONOMIES = "metrics.json", "per_class.parquet", "per_group.parquet", "taxonomies"


def evaluate_embeddings(
    dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    """Measure what the embeddings of a dataset know, in this process, without Beam.

    It makes the same checks and bytes as `EvaluateEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the evaluation, new or of the same command; a text or a Path.
        overwrite: whether what another command made in `output` may be replaced.
        **settings:
            measure: what to measure, one or several: `zeroshot`, the labels of images; `retrieval`, captions of images
                and images of captions; `probe`, logistic regression on image embeddings. By default zeroshot if there
                is a truth or a group column, else retrieval.
            taxonomy: taxonomies for zeroshot: names that the dataset has, files or folders, or Taxonomy objects; one or
                several, which are compared over the same rows. By default the only one of the dataset.
            truth_column: column of the dataset with the class of a sample, as a name or as an index into the first
                taxonomy. By default `cls`, if there is such a column.
            truth: Parquet or CSV file with `key`, or `shard` and `row`; and `class`, or `classes` for a list.
            group_column: column of the dataset whose values are groups.
            split_column: column of the dataset that says `train`, `val` or `test`, for a probe.
            test: selections whose rows test a probe, while all others train it.
            test_fraction, seed: a seeded split, 0.2 and 0 by default.
            selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
            model: the dataset's own checkpoint, if it was moved; it embeds classes that the dataset has not embedded.
    Returns:
        The content of `metrics.json`.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(EvaluateEmbeddings(dataset, output, overwrite=overwrite, **settings).run_here())


class EvaluateEmbeddings(OverParts):
    """Pipeline → PCollection[what the last measure found in a piece of its work]."""

    def __init__(self, dataset: storage.Place, output: storage.Place, *, overwrite: bool = False, **settings: Any):
        """Take the arguments of `evaluate_embeddings`; applying the transform looks at the dataset."""
        super().__init__(lambda: plan_evaluation(dataset, output, overwrite=overwrite, **settings))

    def begin(self, plan: EvaluationPlan, folder: RunFolder) -> _Work:
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
        return _Work(run, asked.measures, dataset.fingerprint, asked.settings)


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
    tests = Selection.open(opened, test) if test else None
    command = {"verb": "evaluate", **asked.settings}
    command |= {"selection": list(chosen.identity)} if chosen.identity else {}
    command |= {"test": list(tests.identity)} if tests else {}
    names = {"record": RECORD, "folders": (TAXONOMIES,) if checkpoint else (), "files": (PER_CLASS, PER_GROUP)}
    new = NewOutput.of(output, opened, command, overwrite, **names)
    return EvaluationPlan(opened, asked, chosen, tests, checkpoint, new)


@dataclasses.dataclass(frozen=True)
class _Work:
    """One run; it is sent to every worker."""

    run: Evaluating
    measures: tuple[str, ...]
    fingerprint: str
    settings: Mapping[str, Any]

    @property
    def steps(self) -> Sequence[Step]:
        """Embed classes that are missing, then measure one thing after the other."""
        of = {"zeroshot": zeroshot_steps, "retrieval": retrieval_steps, "probe": probe_steps}
        return [EmbedClasses(self.run), *(step for name in self.measures for step in of[name](self.run))]

    def finish(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the tables, `metrics.json` and `_SUCCESS`."""
        run, outcome = self.run, Outcome()
        if "zeroshot" in self.measures:
            names = {of.name: of.names for of in run.classes}
            outcome.add_zeroshot(state["zeroshot"], names, state.get("rankings", {}))
        if "retrieval" in self.measures:
            outcome.add_retrieval(state["retrieval"])
        if "probe" in self.measures:
            outcome.add_probe(state["probe"])
        content = {
            "dataset": run.source.dataset,
            "fingerprint": self.fingerprint,
            "made_by": {name: value for name, value in run.new.command.items() if name not in ("format", "writes")},
            **outcome.content,
        }
        if run.source.group_column:
            content["groups"] = {"column": run.source.group_column, "spreads": outcome.spreads()}
        for name, rows, schema in (
            (PER_CLASS, outcome.classes, per_class_schema()),
            (PER_GROUP, outcome.groups, per_group_schema()),
        ):
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
            storage.write_bytes(storage.join(run.new.uri, name), sink.getvalue(), run.folder)
        return run.new.finish(content, run.folder)
