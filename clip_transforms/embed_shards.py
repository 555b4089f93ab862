"""EmbedShards: the pipeline round the work of `embed_task`: plan, tasks, results, and the end of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.labels.classes import embed_classes
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import PROGRESS, embed_task, load_embedder
from clip_transforms.run.end import write_run
from clip_transforms.run.job import Job, read_taxonomies
from clip_transforms.run.plan import RunPlan, plan_run
from clip_transforms.run.processes import count_processes, embed_in_processes
from clip_transforms.run.settings import Settings
from clip_transforms.run.summary import PartResult, RunSummary
from clip_transforms.workers.lifetime import end_with
from clip_transforms.workers.machine import gpus_for
from clip_transforms.workers.runner import check_processes, in_process, is_direct, workers_of


class EmbedShards(beam.PTransform):
    """Pipeline → PCollection[PartResult]: embeds each unit of the inputs and commits its part under `output`.

    Units that an earlier run committed are skipped and yield their PartResult all the same. The last step of the
    pipeline writes `run.json` and `_SUCCESS`.
    """

    def __init__(
        self, inputs: Sequence[str], output: str, model: ClipSpec, taxonomies: Sequence[Taxonomy] = (), **settings: Any
    ):
        """Check the settings; nothing is read yet.

        Args:
            inputs: folders, tars, Parquet files, globs, brace patterns, `@file`, on any fsspec file system.
            output: URI of the dataset, new or to be continued.
            model: the checkpoint.
            taxonomies: to label with.
            **settings: further fields of `run_settings.Settings`.
        Raises:
            ValueError: if a setting is wrong; applying the transform raises it for what is wrong with the files.
        """
        super().__init__()
        self._settings = Settings(tuple(inputs), output, model, tuple(taxonomies), **settings)
        self._plan: RunPlan | None = None
        self._command: tuple[str, ...] = ()
        self.run = ""  # its id, once it has begun
        self.run_folder = None  # held while this object lives: a run's folder is removed only when its lock is free

    @classmethod
    def of(cls, plan: RunPlan, command: Sequence[str]) -> EmbedShards:
        """The transform for a plan that was made already; `command` goes into run.json."""
        transform = cls(plan.settings.inputs, plan.settings.output, plan.settings.model)
        transform._settings, transform._plan, transform._command = plan.settings, plan, tuple(command)
        return transform

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[PartResult]:
        """Write the plan, and wire the pipeline that starts from its URI."""
        options = pipeline.pipeline.options
        check_processes(self._settings.processes, options)
        plan = self._plan or plan_run(self._settings)
        gpus = gpus_for(plan.settings.model.device)
        processes = count_processes(plan.settings.processes, gpus, plan.pending) if in_process(options) else 1
        workers = max(processes, workers_of(options))
        job, self.run_folder = begin_run(plan, workers, self._command, not is_direct(options))
        self.run = job.run
        classes = pipeline | "Taxonomies" >> beam.Create([job.plan_uri]) | beam.ParDo(_EmbedClasses(job))
        start = pipeline | "Plan" >> beam.Create([job.plan_uri])
        if processes > 1:
            embed = _EmbedInProcesses(job)
        else:
            start = start | "Tasks" >> beam.FlatMap(lambda _, tasks: tasks, job.tasks()) | beam.Reshuffle()
            embed = _EmbedTask(job, Shared())
        results = start | "Embed" >> beam.ParDo(embed, beam.pvalue.AsSingleton(classes))
        _ = (
            results
            | "Summarise" >> beam.Map(RunSummary.of)
            | beam.CombineGlobally(RunSummary.sum)
            | "WriteRun" >> beam.Map(lambda summary: write_run(job, summary) and None)
        )
        return results


class _EmbedClasses(beam.DoFn):
    """Plan URI → {taxonomy: URI of its class embeddings}, one element."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, _: str) -> Iterator[dict[str, str]]:
        job = self._job
        taxonomies = read_taxonomies(job) if job.pending or job.unlabelled else []
        yield embed_classes(job.output, taxonomies, job.checkpoint, job.settings.model.device, job.folder)


class _EmbedTask(beam.DoFn):
    """Task (a range of units of the plan) → PartResult of each."""

    def __init__(self, job: Job, shared: Shared):
        self._job, self._shared = job, shared

    def setup(self):
        end_with(self._job.launcher)
        self._embedder = self._shared.acquire(lambda: load_embedder(self._job)) if self._job.pending else None

    def process(self, task: tuple[int, int], classes: Mapping[str, str]) -> Iterator[PartResult]:
        yield from embed_task(task, self._job, self._embedder, classes)


class _EmbedInProcesses(beam.DoFn):
    """Plan URI → PartResult of each of its units, from processes that this one starts."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, _: str, classes: Mapping[str, str]) -> Iterator[PartResult]:
        yield from embed_in_processes(self._job, classes, PROGRESS)
