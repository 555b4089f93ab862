"""Work over the parts of a finished dataset, with Beam and without: what every verb but `embed` has in common.

A verb supplies a *plan*, which is made on the launcher and refuses whatever is wrong, and a list of *steps*, which are
sent to every worker. A step goes over some items, mostly the names of parts, and adds up a small result of each. Names
and small results cross the edges between the steps; rows and vectors never do.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.run.beam import beam
from clip_transforms.run.run_folder import RunFolder, mark_begun, new_run_id, remove_run_folder, writing
from clip_transforms.workers.lifetime import end_with
from clip_transforms.workers.machine import cores
from clip_transforms.workers.runner import is_direct

if TYPE_CHECKING:
    from typing_extensions import Self


# How far the steps of a run are, in this process: `step` of `steps`, and how many of its `items` are `done`.
PROGRESS: Counter[str] = Counter()


class Step:
    """One pass over some items. It is pickled and sent to every worker, so it must be small.

    Attributes:
        threaded: whether `do` may run in several threads of one process. The order of the results stays.
    """

    threaded = False

    def items(self, state: Any) -> Iterable[Any]:
        """Yield the items; each is small and holds what `do` needs.

        Args:
            state: what the step before returned from `after`; None for the first step.
        """
        raise NotImplementedError

    def do(self, item: Any) -> Any:
        """Do one item; a small result."""
        raise NotImplementedError

    def summarise(self, result: Any) -> Any:
        """Turn a result into a summary that `add` can add up; by default they are counters."""
        return result

    def add(self, summaries: Iterable[Any]) -> Any:
        """Add up summaries, and sums of them, or none at all; the order must not matter."""
        return add(summaries)

    def after(self, state: Any, total: Any) -> Any:
        """Return the state for the next step; it is small.

        Args:
            state: the state that this step began with.
            total: the sum over its items.
        """
        return total


@dataclasses.dataclass(frozen=True)
class Once(Step):
    """A step that is done once, on one worker: what it returns is the state for the next step.

    Attributes:
        function: what is done; it can be pickled.
    """

    function: Callable[[], Any]

    def items(self, state: Any) -> list[None]:
        """Return one item, which means nothing."""
        return [None]

    def do(self, item: None) -> list[Any]:
        """Call the function; its result as a list, so that an empty sum is one too."""
        return [self.function()]

    def add(self, summaries: Iterable[list[Any]]) -> list[Any]:
        """Return all results, of which there is one."""
        return [result for summary in summaries for result in summary]

    def after(self, state: Any, total: list[Any]) -> Any:
        """Return the result."""
        return total[0]


class Work(Protocol):
    """What a run does: some steps, one after the other, and an end."""

    @property
    def steps(self) -> Sequence[Step]:
        """At least one step."""

    def finish(self, state: Any) -> Mapping[str, Any]:
        """Finish after the last step, whose state this is, and return what the run has to tell."""


class Plan(Protocol):
    """What is to be done. It is made on the launcher, and everything that is wrong is refused there."""

    @property
    def output(self) -> str:
        """URI of the folder that the verb writes to, which may be the dataset itself."""

    def finished(self) -> Mapping[str, Any] | None:
        """Return what the run had to tell, if the same command has done everything before; otherwise None."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run over the parts.

    Attributes:
        folder: URI of its temporary folder.
        launcher: process id of the launcher.
        work: the verb's work.
    """

    folder: str
    launcher: int
    work: Work

    def finish(self, state: Any) -> Mapping[str, Any]:
        """Finish the work and remove the temporary folder."""
        content = self.work.finish(state)
        remove_run_folder(self.folder)
        return content


def write_items(folder: str, items: Sequence[Any]) -> None:
    """Write the items of a step into the run's folder. All of them would make the graph too large for some runners."""
    storage.write_bytes(storage.join(folder, "items.json"), json.dumps(items).encode(), folder)


def read_items(folder: str) -> Iterator[Any]:
    """Read the items that `write_items` wrote; tuples have become lists."""
    yield from json.loads(storage.read_bytes(storage.join(folder, "items.json")))


class OverParts(beam.PTransform):
    """Pipeline → PCollection of the results of the last step: the base class of the transforms of such verbs.

    A subclass says how to make the plan, and in `begin` what is done then.

    Attributes:
        run_folder: the run's folder, once it has begun. It is held while this object lives: the next run removes a
            run's folder only if its lock is free.
    """

    def __init__(self, make_plan: Callable[[], Plan]):
        """Do nothing yet; applying the transform calls `make_plan`."""
        super().__init__()
        self._make_plan = make_plan
        self.run_folder: RunFolder | None = None

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the transform of a plan that has been made."""
        transform = cls.__new__(cls)
        OverParts.__init__(transform, lambda: plan)
        return transform

    def begin(self, plan: Any, folder: RunFolder) -> Work:
        """Let the output know that a run begins. Other runs of this output wait in the meantime.

        Raises:
            ValueError: if the output does not fit any more. Nothing is written then.
        """
        raise NotImplementedError

    def begin_run(self, plan: Plan, detached: bool) -> Run:
        """Lock the output and begin a run in it."""
        folder = RunFolder(plan.output, new_run_id(), detached)
        try:
            with folder.alone(), writing():
                run = Run(folder.uri, os.getpid(), self.begin(plan, folder))
        except BaseException:
            folder.close()
            raise
        self.run_folder = folder
        return run

    def run_here(self) -> Mapping[str, Any]:
        """Do the same in this process, without Beam; what the run has to tell."""
        plan = self._make_plan()
        if (content := plan.finished()) is not None:
            return content
        run = self.begin_run(plan, detached=False)
        with cast(RunFolder, self.run_folder):
            state = None
            for number, step in enumerate(run.work.steps):
                state = do_step(step, state, _Items(step, number + 1, len(run.work.steps)))
            return run.finish(state)

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection:
        """Begin the run, and wire a chain of its steps."""
        detached = not is_direct(pipeline.pipeline.options)
        run = self.begin_run(self._make_plan(), detached)
        state = pipeline | beam.Create([None])
        if detached:
            state = state | "Begin" >> beam.Map(lambda _: mark_begun(run.folder))
        for number, step in enumerate(run.work.steps):
            results = (
                state
                | f"Items{number}" >> beam.FlatMap(_Items(step, number + 1, len(run.work.steps)))
                | f"Spread{number}" >> beam.Reshuffle()
                | f"Do{number}" >> beam.ParDo(_Do(step, run.launcher))
            )
            total = (
                results
                | f"Summarise{number}" >> beam.Map(step.summarise)
                | f"Add{number}" >> beam.CombineGlobally(step.add)
            )
            state = state | f"After{number}" >> beam.Map(step.after, beam.pvalue.AsSingleton(total))
        _ = state | "Finish" >> beam.Map(lambda last: run.finish(last) and None)
        return results


def do_step(step: Step, state: Any, items: Callable[[Any], Iterable[Any]] | None = None) -> Any:
    """Do a step in this process.

    Args:
        step: the step.
        state: the state that it begins with.
        items: yields its items, from this state; by default `step.items`.
    Returns:
        The state for the next step.
    """
    results = _do_here(step, (items or step.items)(state))
    return step.after(state, step.add(step.summarise(result) for result in results))


def _do_here(step: Step, items: Iterable[Any]) -> Iterator[Any]:
    """Do the items of a step in this process; their results, in order."""
    if not step.threaded:
        for item in items:
            yield _done(step.do(item))
        return
    threads = cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for item in items:
            waiting.append(pool.submit(step.do, item))
            if len(waiting) > 2 * threads:
                yield _done(waiting.popleft().result())
        while waiting:
            yield _done(waiting.popleft().result())


def _done(result: Any) -> Any:
    """Count an item that is done, and return its result."""
    PROGRESS["done"] += 1
    return result


@dataclasses.dataclass(frozen=True)
class _Items:
    """State → the items of a step, which are counted for a bar that shows the progress."""

    step: Step
    number: int
    steps: int

    def __call__(self, state: Any) -> Iterator[Any]:
        PROGRESS["step"], PROGRESS["steps"], PROGRESS["items"], PROGRESS["done"] = self.number, self.steps, 0, 0
        for item in self.step.items(state):
            PROGRESS["items"] += 1
            yield item


class _Do(beam.DoFn):
    """Item → result."""

    def __init__(self, step: Step, launcher: int):
        self._step, self._launcher = step, launcher

    def setup(self):
        end_with(self._launcher)

    def process(self, item: Any) -> Iterator[Any]:
        yield _done(self._step.do(item))
