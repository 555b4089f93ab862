"""Work over the parts of a finished dataset, with Beam and without: what every verb but `embed` has in common.

A verb supplies two small classes. Its *plan* is made on the launcher and says which parts are to be done. Its *work* is
sent to every worker and says what is done with one of them. Names of parts cross the edges between the steps, and small
results; rows and vectors never do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.parts.manifest import write_json
from clip_transforms.run.beam import beam
from clip_transforms.run.run_folder import RunFolder, new_run_id, remove_run_folder, writing
from clip_transforms.workers.lifetime import end_with
from clip_transforms.workers.runner import is_direct


class PartsWork:
    """What a verb does with the parts. It is pickled and sent to every worker, so it must be small.

    Attributes:
        marks_success: whether `_SUCCESS` is written when everything is done.
    """

    marks_success: bool

    def prepare(self) -> Any:
        """Prepare a small value that every `do_part` call receives. This runs once."""

    def do_part(self, item: Any, prepared: Any) -> Any:
        """Do one part; a small result.

        Args:
            item: one of the plan's items.
            prepared: the result of `prepare`.
        """
        raise NotImplementedError

    def summarise(self, result: Any) -> Any:
        """Turn a result into a summary that `add` can add up; by default they are counters."""
        return result

    def add(self, summaries: Iterable[Any]) -> Any:
        """Add up summaries, and sums of them; the order must not matter."""
        return add(summaries)

    def finish(self, total: Any) -> Mapping[str, Any]:
        """Finish the run after the last part, and return the content of its own file."""
        return total


class PartsPlan(Protocol):
    """Which parts are to be done. It is made on the launcher, and everything that is wrong is refused there."""

    @property
    def output(self) -> str:
        """URI of the folder that the verb writes to, which may be the dataset itself."""

    @property
    def items(self) -> Sequence[Any]:
        """A JSON value for each part that is to be done, with the part's name."""

    def begin(self, folder: RunFolder) -> PartsWork:
        """Let the output know that a run begins. Other runs of this output wait in the meantime.

        Raises:
            ValueError: if the output does not fit any more. Nothing is written then.
        """


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run over the parts.

    Attributes:
        output: URI of the folder that the verb writes to.
        name: the run's id.
        folder: URI of its temporary folder.
        launcher: process id of the launcher.
        started: seconds since 1970.
        work: the verb's work.
    """

    output: str
    name: str
    folder: str
    launcher: int
    started: float
    work: PartsWork

    @property
    def items_uri(self) -> str:
        """URI of the items. A hundred thousand names would make the graph too large for some runners."""
        return storage.join(self.folder, "parts.json")

    def finish(self, total: Any) -> dict[str, Any]:
        """Finish the work, write the run's own file below `runs/`, and then `_SUCCESS`."""
        seconds = round(time.time() - self.started, 3)
        content = {"run": self.name, **self.work.finish(total), "seconds": seconds}
        write_json(storage.join(self.output, "runs", f"{self.name}.json"), content, self.folder)
        if self.work.marks_success:
            storage.write_bytes(storage.join(self.output, "_SUCCESS"), b"", self.folder)
        remove_run_folder(self.folder)
        return content


def _begin(plan: PartsPlan, detached: bool) -> tuple[_Run, RunFolder]:
    """Lock the output and begin a run in it."""
    name = new_run_id()
    folder = RunFolder(plan.output, name, detached)
    try:
        with folder.alone(), writing():
            work = plan.begin(folder)
            storage.make_folder(storage.join(plan.output, "runs"))
        run = _Run(plan.output, name, folder.uri, os.getpid(), time.time(), work)
        storage.write_bytes(run.items_uri, json.dumps(list(plan.items)).encode(), folder.uri)
    except BaseException:
        folder.close()
        raise
    return run, folder


def _read_items(uri: str) -> Iterator[Any]:
    yield from json.loads(storage.read_bytes(uri))


class OverParts(beam.PTransform):
    """Pipeline → PCollection of results, one a part: the base class of the transforms of such verbs.

    Attributes:
        run_folder: the run's folder, once it has begun. It is held while this object lives: the next run removes a
            run's folder only if its lock is free.
    """

    def __init__(self, make_plan: Callable[[], PartsPlan]):
        """Do nothing yet; applying the transform calls `make_plan`."""
        super().__init__()
        self._make_plan = make_plan
        self.run_folder: RunFolder | None = None

    def run_here(self) -> dict[str, Any]:
        """Do the same in this process, without Beam; the content of the run's own file below `runs/`."""
        run, self.run_folder = _begin(self._make_plan(), detached=False)
        with self.run_folder:
            prepared = run.work.prepare()
            results = (run.work.do_part(item, prepared) for item in _read_items(run.items_uri))
            return run.finish(run.work.add(run.work.summarise(result) for result in results))

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection:
        """Begin the run, and wire the pipeline that starts from the URI of its items."""
        run, self.run_folder = _begin(self._make_plan(), detached=not is_direct(pipeline.pipeline.options))
        prepared = pipeline | "Work" >> beam.Create([run.items_uri]) | beam.Map(lambda _: run.work.prepare())
        results = (
            pipeline
            | "Plan" >> beam.Create([run.items_uri])
            | "Parts" >> beam.FlatMap(_read_items)
            | beam.Reshuffle()
            | "DoPart" >> beam.ParDo(_DoPart(run), beam.pvalue.AsSingleton(prepared))
        )
        _ = (
            results
            | "Summarise" >> beam.Map(run.work.summarise)
            | beam.CombineGlobally(run.work.add)
            | "Finish" >> beam.Map(lambda total: run.finish(total) and None)
        )
        return results


class _DoPart(beam.DoFn):
    """Item → result."""

    def __init__(self, run: _Run):
        self._run = run

    def setup(self):
        end_with(self._run.launcher)

    def process(self, item: Any, prepared: Any) -> Iterator[Any]:
        yield self._run.work.do_part(item, prepared)
