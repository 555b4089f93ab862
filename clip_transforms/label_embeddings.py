"""LabelEmbeddings: new taxonomies over a finished dataset, from its stored embeddings."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint, ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy, check_names
from clip_transforms.labels.classes import embed_classes
from clip_transforms.labels.part import label_part, labels_footer, stale_labels
from clip_transforms.parts.dataset import (
    OutputError,
    check_dataset,
    check_taxonomies,
    clear_success,
    existing_dataset,
    write_dataset,
    write_json,
)
from clip_transforms.parts.footers import part_uri, read_footers
from clip_transforms.parts.writer import make_folders
from clip_transforms.run.folder import RunFolder, new_run_id, remove_run_folder
from clip_transforms.workers.lifetime import end_with
from clip_transforms.workers.runner import is_direct


@dataclasses.dataclass(frozen=True)
class LabelPlan:
    """What is to be labelled.

    Attributes:
        output: URI of the dataset.
        taxonomies: to label with.
        checkpoint: of the dataset's embeddings.
        top_labels: length of a label's `top`.
        overwrite: whether a taxonomy may mean other classes than it did.
        parts: of the dataset.
        stale: part → taxonomies whose labels are to be made.
    """

    output: str
    taxonomies: tuple[Taxonomy, ...]
    checkpoint: Checkpoint
    top_labels: int
    overwrite: bool
    parts: tuple[str, ...]
    stale: Mapping[str, list[str]]


def plan_labels(
    dataset: str,
    taxonomies: Sequence[Taxonomy],
    model: ClipSpec | None = None,
    top_labels: int = 5,
    overwrite: bool = False,
) -> LabelPlan:
    """Find the parts of a dataset whose labels are missing or stale.

    Args:
        dataset: URI of a folder that `EmbedShards` wrote.
        taxonomies: to label with.
        model: the dataset's own checkpoint, where it does not lie any more where the dataset found it.
        top_labels: length of a label's `top`.
        overwrite: whether a taxonomy may mean other classes than the labels of its name do now.
    Raises:
        ValueError: one of its kinds, with one sentence for the person who asked.
    """
    if not taxonomies:
        raise ValueError("--taxonomy is missing: give at least one .json or .txt file with classes")
    if top_labels < 1:
        raise ValueError(f"--top_labels is {top_labels}, but it must be 1 or more")
    check_names(taxonomies)
    output = storage.normalise(dataset)
    made = existing_dataset(output)
    spec = model or ClipSpec(made["model"])
    checkpoint = dataclasses.replace(spec, activation=made["settings"]["activation"]).resolve()
    if checkpoint.sha256 != made["settings"]["model"]:
        raise OutputError(
            f"--model {spec.model} has SHA-256 {checkpoint.sha256}, but the embeddings of {output} are of "
            f"{made['settings']['model']}; give the checkpoint that made them"
        )
    digests = {taxonomy.name: taxonomy.digest for taxonomy in taxonomies}
    if not overwrite:
        check_taxonomies(output, made, digests)
    parts = check_dataset(output)
    stale = stale_labels(output, read_footers(output, "embeddings", parts), digests, top_labels)
    return LabelPlan(output, tuple(taxonomies), checkpoint, top_labels, overwrite, tuple(parts), stale)


class LabelEmbeddings(beam.PTransform):
    """Pipeline → PCollection[(part, rows)]: labels the parts of a dataset whose labels are missing or stale."""

    def __init__(self, dataset: str, taxonomies: Sequence[Taxonomy], **options: Any):
        """See `plan_labels` for the arguments; the dataset is looked at when the transform is applied."""
        super().__init__()
        self._arguments = (dataset, taxonomies, options)
        self._plan: LabelPlan | None = None
        self.run_folder: RunFolder | None = None

    @classmethod
    def of(cls, plan: LabelPlan) -> LabelEmbeddings:
        """The transform for a plan that was made already."""
        transform = cls(plan.output, plan.taxonomies)
        transform._plan = plan
        return transform

    def _begin(self, plan: LabelPlan) -> bool:
        """Let the dataset know its taxonomies; whether it was complete before its labels change."""
        with self.run_folder.alone():
            made = existing_dataset(plan.output)
            digests = {taxonomy.name: taxonomy.digest for taxonomy in plan.taxonomies}
            if not plan.overwrite:
                check_taxonomies(plan.output, made, digests)
            known = {**made["taxonomies"], **digests}
            write_dataset(plan.output, made["settings"], made["model"], known, self.run_folder.uri)
        complete = storage.exists(storage.join(plan.output, "_SUCCESS"))
        clear_success(plan.output)
        return complete

    def _write(self, name: str, content: Any) -> str:
        """A file for the workers in the run's folder; its URI."""
        uri = storage.join(self.run_folder.uri, name)
        storage.write_bytes(uri, json.dumps(content).encode(), self.run_folder.uri)
        return uri

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[tuple[str, int]]:
        """One element a part; their names and the taxonomies' texts lie in files beside the output."""
        dataset, taxonomies, options = self._arguments
        plan = self._plan or plan_labels(dataset, taxonomies, **options)
        run = new_run_id()
        self.run_folder = RunFolder(plan.output, run, detached=not is_direct(pipeline.pipeline.options))
        complete = self._begin(plan)
        make_folders(plan.output, [taxonomy.name for taxonomy in plan.taxonomies])
        content = {taxonomy.name: taxonomy.to_json() for taxonomy in plan.taxonomies}
        texts = self._write("taxonomies.json", content)
        parts = self._write("parts.json", sorted(plan.stale.items()))
        small = dataclasses.replace(plan, taxonomies=(), parts=(), stale={})
        digests = {taxonomy.name: taxonomy.digest for taxonomy in plan.taxonomies}
        task = _LabelTask(small, self.run_folder.uri, digests)
        classes = (
            pipeline | "Taxonomies" >> beam.Create([texts]) | beam.ParDo(_EmbedClasses(small, self.run_folder.uri))
        )
        labelled = (
            pipeline
            | "Plan" >> beam.Create([parts])  # a hundred thousand names would make the graph too large for some runners
            | "Parts" >> beam.FlatMap(_read_parts)
            | beam.Reshuffle()
            | "Label" >> beam.ParDo(task, beam.pvalue.AsSingleton(classes))
        )
        started, folder = time.time(), self.run_folder.uri
        _ = (
            labelled
            | beam.Map(lambda result: (1, result[1]))
            | beam.CombineGlobally(lambda counts: tuple(map(sum, zip(*counts, strict=True))) or (0, 0))
            | beam.Map(lambda total: _finish(plan.output, run, folder, digests, started, complete, total))
        )
        return labelled


def _read_parts(uri: str) -> Iterator[tuple[str, list[str]]]:
    """URI of the list of parts → (part, taxonomies) of each."""
    return map(tuple, json.loads(storage.read_bytes(uri)))


class _EmbedClasses(beam.DoFn):
    """URI of the taxonomies' texts → {taxonomy: URI of its class embeddings}, one element."""

    def __init__(self, plan: LabelPlan, folder: str):
        self._plan, self._folder = plan, folder

    def process(self, texts: str) -> Iterator[dict[str, str]]:
        contents = json.loads(storage.read_bytes(texts))
        taxonomies = [Taxonomy.from_json(name, content) for name, content in contents.items()]
        yield embed_classes(self._plan.output, taxonomies, self._plan.checkpoint, "auto", self._folder)


class _LabelTask(beam.DoFn):
    """(part, taxonomies) → (URI of its embeddings, rows)."""

    def __init__(self, plan: LabelPlan, folder: str, digests: Mapping[str, str]):
        self._plan, self._folder, self._launcher = plan, folder, os.getpid()
        self._footers = {name: labels_footer(name, digest, plan.top_labels) for name, digest in digests.items()}

    def setup(self):
        end_with(self._launcher)

    def process(self, task: tuple[str, list[str]], classes: Mapping[str, str]) -> Iterator[tuple[str, int]]:
        part, names = task
        wanted = {name: classes[name] for name in names}
        rows = label_part(self._plan.output, self._folder, part, wanted, self._footers, self._plan.top_labels)
        yield part_uri(self._plan.output, "embeddings", part), rows


def _finish(
    output: str,
    run: str,
    folder: str,
    digests: Mapping[str, str],
    started: float,
    complete: bool,
    total: tuple[int, int],
) -> None:
    parts, rows = total
    seconds = round(time.time() - started, 3)
    content = {"run": run, "taxonomies": dict(digests), "labelled": {"parts": parts, "rows": rows}, "seconds": seconds}
    write_json(storage.join(output, "runs", f"{run}.json"), content, folder)
    if complete:
        storage.write_bytes(storage.join(output, "_SUCCESS"), b"", folder)
    remove_run_folder(folder)
