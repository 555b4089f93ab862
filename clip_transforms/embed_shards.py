"""EmbedShards and embed_shards: image–caption shards → a dataset of embeddings, scores, labels and rejects."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomies, as_taxonomies
from clip_transforms.run.beam import Shared, beam, parse_resource_hints
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import PROGRESS, embed_run_classes, embed_task, load_embedder
from clip_transforms.run.end import write_run
from clip_transforms.run.job import Job
from clip_transforms.run.plan import RunPlan, plan_run
from clip_transforms.run.processes import embed_in_processes
from clip_transforms.run.run_folder import RunFolder, mark_begun
from clip_transforms.run.settings import Settings
from clip_transforms.run.summary import PartResult, RunSummary
from clip_transforms.workers.lifetime import end_with
from clip_transforms.workers.machine import check_device, check_process_count
from clip_transforms.workers.runner import check_processes, in_process, is_direct, workers_of

_LOGGER = logging.getLogger(__name__)
# Some runners give one process several tasks at once, in threads. One task keeps all cores of a process busy, so they
# take turns: the process has one pool that decodes and one bound of bytes that wait, and its seconds add up.
_TURN = threading.Lock()


def embed_shards(
    inputs: storage.Places,
    output: storage.Place,
    model: ClipSpec | storage.Place,
    taxonomies: Taxonomies = (),
    **settings: Any,
) -> dict[str, Any]:
    """Embed shards in this process, or in several of this machine, without Beam.

    It makes the same checks, commits and bytes as `EmbedShards`, and goes on where an earlier run stopped.

    Args:
        inputs: folders, tars, Parquet files, listings, globs, brace patterns or `@file`, on any fsspec file system; a
            text or a Path, or several.
        output: the dataset, new or to be continued; a text or a Path.
        model: the checkpoint; a ClipSpec, or a text or a Path for one with its usual settings.
        taxonomies: classes to label with; a Taxonomy, or a text or a Path of a file, or several.
        **settings: further fields of `run.settings.Settings`, such as `processes`.
    Returns:
        The content of `run.json`: counts, problems, speed. The run is complete if `complete` is true; `problems` says
        why it is not.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if a setting, an input or the output is wrong. Nothing
            was started then.
        Exception: what ended the run. What is committed stays, and the same call goes on from there.
    """
    return EmbedShards(inputs, output, model, taxonomies, **settings).run_here()


class EmbedShards(beam.PTransform):
    """Pipeline → PCollection[PartResult]: embed each unit of the inputs and commit its part under `output`.

    A unit that an earlier run committed is skipped and yields its PartResult all the same. The last step of the
    pipeline writes `run.json` and `_SUCCESS`.
    """

    def __init__(
        self,
        inputs: storage.Places,
        output: storage.Place,
        model: ClipSpec | storage.Place,
        taxonomies: Taxonomies = (),
        **settings: Any,
    ):
        """Check the settings; only files of taxonomies are read yet. The arguments are those of `embed_shards`.

        Raises:
            ValueError: if a setting is wrong. If an input or the output is wrong, applying the transform raises it.
        """
        super().__init__()
        _check_names(settings)
        self._settings = Settings(
            inputs=storage.as_uris(inputs, "inputs"),
            output=storage.as_uri(output, "output"),
            model=ClipSpec.of(model),
            taxonomies=as_taxonomies(taxonomies),
            **settings,
        )
        self._plan: RunPlan | None = None
        self._command: tuple[str, ...] = ()
        self._hints: dict[str, Any] = {}
        self.run = ""  # the run's id, once it has begun
        # Held while this object lives: the next run removes a run's folder only if its lock is free.
        self.run_folder: RunFolder | None = None

    @classmethod
    def of(cls, plan: RunPlan, command: Sequence[str]) -> EmbedShards:
        """Make the transform for a plan that exists already; `command` goes into run.json."""
        transform = cls(plan.settings.inputs, plan.settings.output, plan.settings.model)
        transform._settings, transform._plan, transform._command = plan.settings, plan, tuple(command)
        return transform

    def with_resource_hints(self, **hints: Any) -> EmbedShards:
        """Put Beam's resource hints, such as `accelerator` and `min_ram`, on the step that embeds, and on no other.

        A runner that fits machines to steps, as Dataflow does, then needs no GPU for the steps before and after it.

        Raises:
            ValueError: if Beam does not know a hint, or its value is wrong.
        """
        parse_resource_hints(hints)
        self._hints |= hints
        return self

    def _made_plan(self, here: bool, places: bool) -> RunPlan:
        """Make the plan, unless the command did and has printed it.

        Args:
            here: whether this machine embeds.
            places: whether it does so in processes of ours.
        """
        if self._plan is not None:
            return self._plan
        if here:
            check_device(self._settings.model.device)
        plan = plan_run(self._settings)
        for line in [*plan.lines, *filter(None, [plan.places.line] if places else [])]:
            _LOGGER.log(
                logging.WARNING if line.startswith("warning: ") else logging.INFO, line.removeprefix("warning: ")
            )
        if here:
            plan.fetch_model()
        return plan

    def run_here(self) -> dict[str, Any]:
        """Do the same without Beam, in this process or in several of this machine; the content of `run.json`."""
        check_process_count(self._settings.processes, self._settings.feeders)
        plan = self._made_plan(here=True, places=True)
        gpus = plan.places.gpus
        workers = len(gpus) if len(gpus) > 1 else 0
        job, self.run_folder = begin_run(plan, workers, self._command, False, plan.places.feeders)
        self.run = job.run
        with self.run_folder:
            classes = embed_run_classes(job)
            if len(gpus) > 1:
                results = embed_in_processes(job, gpus, classes, PROGRESS)
            else:
                results = _embed_tasks(job, classes)
            return write_run(job, RunSummary.of_all(results))

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[PartResult]:
        """Write the plan, and wire the pipeline that starts from its URI."""
        options = pipeline.pipeline.options
        check_processes(self._settings.processes, self._settings.feeders, options)
        plan = self._made_plan(here=is_direct(options), places=in_process(options))
        gpus, feeders = (plan.places.gpus, plan.places.feeders) if in_process(options) else ((), None)
        workers = len(gpus) if len(gpus) > 1 else workers_of(options)
        if feeders is None:  # how many workers share a machine is known to the runner alone
            feeders = self._settings.feeders or 0
        detached = not is_direct(options)
        job, self.run_folder = begin_run(plan, workers, self._command, detached, feeders)
        self.run = job.run
        classes = pipeline | "Taxonomies" >> beam.Create([job.plan_uri]) | beam.ParDo(_EmbedClasses(job, detached))
        start = pipeline | "Plan" >> beam.Create([job.plan_uri])
        embed: beam.DoFn
        if len(gpus) > 1:
            embed = _EmbedInProcesses(job, gpus)
        else:
            start = start | "Tasks" >> beam.FlatMap(lambda _, tasks: tasks, job.tasks()) | beam.Reshuffle()
            embed = _EmbedTask(job, Shared())
        step = beam.ParDo(embed, beam.pvalue.AsSingleton(classes)).with_resource_hints(**self._hints)
        results = start | "Embed" >> step
        _ = (
            results
            | "Summarise" >> beam.Map(RunSummary.of)
            | beam.CombineGlobally(RunSummary.sum)
            | "WriteRun" >> beam.Map(lambda summary: write_run(job, summary) and None)
        )
        return results


def _embed_tasks(job: Job, classes: Mapping[str, str]) -> Iterator[PartResult]:
    embedder = load_embedder(job) if job.pending else None
    for task in job.tasks():
        yield from embed_task(task, job, embedder, classes)


class _EmbedClasses(beam.DoFn):
    """Plan URI → {taxonomy: URI of its class embeddings}, one element."""

    def __init__(self, job: Job, detached: bool):
        self._job, self._detached = job, detached

    def process(self, _: str) -> Iterator[dict[str, str]]:
        if self._detached:
            mark_begun(self._job.folder)
        yield embed_run_classes(self._job)


class _EmbedTask(beam.DoFn):
    """Task (a range of units of the plan) → PartResult of each."""

    def __init__(self, job: Job, shared: Shared):
        self._job, self._shared = job, shared

    def setup(self):
        end_with(self._job.launcher)
        self._embedder = self._shared.acquire(lambda: load_embedder(self._job)) if self._job.pending else None

    def process(self, task: tuple[int, int], classes: Mapping[str, str]) -> Iterator[PartResult]:
        with _TURN:
            yield from embed_task(task, self._job, self._embedder, classes)


class _EmbedInProcesses(beam.DoFn):
    """Plan URI → PartResult of each of its units, from processes that this one starts."""

    def __init__(self, job: Job, gpus: Sequence[str | None]):
        self._job, self._gpus = job, gpus

    def process(self, _: str, classes: Mapping[str, str]) -> Iterator[PartResult]:
        yield from embed_in_processes(self._job, self._gpus, classes, PROGRESS)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Refuse settings that there are not.

    Raises:
        TypeError: naming the first, as Python does of an unknown argument.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"embed_shards and EmbedShards have no argument {name}; {hint}")
