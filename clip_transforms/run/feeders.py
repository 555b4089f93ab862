"""The feeders of a process: processes that read, decode and write, so that its model never waits for Python's lock."""

from __future__ import annotations

import collections
import dataclasses
import mmap
import os
import queue
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from clip_transforms.engine.calls import CallsModel, Embedded
from clip_transforms.engine.far_model import FarModel, Request, Turns
from clip_transforms.run.child_process import ChildProcess, obituary, pass_on
from clip_transforms.run.job import Job
from clip_transforms.run.summary import PartResult
from clip_transforms.shards.unit import Unit


class Feeders:
    """Feeders of one model. They end when this object is dropped. One task at a time uses them."""

    def __init__(self, count: int):
        """Start them, so that they are ready by the time that the model is loaded.

        Args:
            count: the number of feeders.
        """
        self._count = count
        self._feeders: list[_Feeder] = []
        weakref.finalize(self, _end, self._feeders)
        self._start()

    def _start(self) -> None:
        self._heard: queue.SimpleQueue = queue.SimpleQueue()  # what is left in an older one was said by others
        for number in range(1, self._count + 1):
            self._feeders.append(_Feeder(f"feeder {number} of {self._count}", self._heard))

    def lend(self, job: Job, caller: CallsModel, batch_size: int, cores: int) -> None:
        """Let them use a model of this process.

        Args:
            job: the run.
            caller: calls the model.
            batch_size: the number of pictures in a forward pass.
            cores: the number of cores that they can count on together.
        """
        self._lent = job, FarModel.of(caller.model), batch_size
        self._turns, self._cores = Turns(caller), max(1, cores // self._count)

    def embed(self, units: Sequence[Unit], classes: Mapping[str, str], progress: Counter) -> Iterator[PartResult]:
        """Embed units and commit the part of each.

        Args:
            units: the units.
            classes: taxonomy → URI of its class embeddings.
            progress: a counter to which the work of the feeders is added.
        Yields:
            A PartResult for each unit, in their order. The last one has the seconds, as the mean over the feeders.
        Raises:
            ChildProcessError: if a feeder died.
            Exception: any error in a feeder, or of the model.
        """
        start = time.perf_counter()
        seconds: Counter = Counter()
        if not self._feeders:  # an error ended them
            self._start()
        feeders, last = self._feeders[: len(units)], None
        for feeder in feeders:
            if not feeder.has_begun:
                feeder.begin(*self._lent, classes, self._cores, self._turns)
        try:
            for result in self._embed(feeders, units, progress):
                if last is not None:
                    yield last
                seconds.update(result.seconds)
                last = dataclasses.replace(result, seconds={}, process=f"{os.uname().nodename}-{os.getpid()}")
        except BaseException:
            _end(self._feeders)  # they may be in the middle of a unit
            raise
        assert last is not None
        mean = {stage: value / len(feeders) for stage, value in seconds.items()}
        yield dataclasses.replace(last, seconds=mean | {"task": time.perf_counter() - start})

    def _embed(self, feeders: Sequence[_Feeder], units: Sequence[Unit], progress: Counter) -> Iterator[PartResult]:
        """Hand out the units, and yield results in the order of the units, as soon as those before are there."""
        waiting = collections.deque(range(len(units)))
        done: dict[int, PartResult] = {}
        place = 0

        def hand_out(feeder: _Feeder) -> None:
            # A unit waits in the feeder, so that it need not wait itself; the last ones wait for whoever is free.
            while waiting and (not feeder.places or (len(feeder.places) < 2 and len(waiting) >= len(feeders))):
                feeder.places.append(waiting.popleft())
                feeder.tell(("unit", units[feeder.places[-1]]))

        for feeder in feeders:
            hand_out(feeder)
        while place < len(units):
            feeder, kind, said = self._heard.get()
            if kind == "result":
                done[feeder.places.popleft()] = said
                hand_out(feeder)
                while place in done:
                    yield done.pop(place)
                    place += 1
            elif kind == "ended":
                where = f"in the middle of {units[feeder.places[0]].shard}" if feeder.places else "between two units"
                raise ChildProcessError(obituary(feeder, said, where, "--feeders"))
            else:
                pass_on(feeder, kind, said, progress)


class _Feeder(ChildProcess):
    """A feeder, as its parent sees it.

    Attributes:
        places: what it has not done of its units.
    """

    def __init__(self, name: str, heard: queue.SimpleQueue):
        """Start it.

        Args:
            name: its name in messages.
            heard: receives its messages.
        """
        self.places: collections.deque[int] = collections.deque()
        self._file = _file_in_memory()
        self._turns: Turns | None = None
        super().__init__("clip_transforms.run.feeder", name, heard, {}, [self._file.fileno()], self._embed)

    def begin(
        self, job: Job, model: FarModel, batch_size: int, classes: Mapping[str, str], cores: int, turns: Turns
    ) -> None:
        """Let it use a model of this process for the units to come."""
        size = model.memory_bytes(batch_size)
        self._file.truncate(size)
        self._memory, self._turns = mmap.mmap(self._file.fileno(), size), turns
        turns.share(self._memory)
        self.tell((job, model, batch_size, dict(classes), cores))

    @property
    def has_begun(self) -> bool:
        """Whether it has a model to use."""
        return self._turns is not None

    def _embed(self, request: Request) -> Embedded:
        assert self._turns is not None, "it asks for nothing before it has got a model"
        return self._turns.answer(self._memory, request)

    def end(self) -> None:
        """Kill it, and free its memory."""
        super().end()
        if self._turns is not None:
            self._turns.free(self._memory)
        self._file.close()


def _file_in_memory() -> BinaryIO:
    """Open a file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("batch"), "r+b")
    return tempfile.TemporaryFile()


def _end(feeders: list[_Feeder]) -> None:
    while feeders:
        feeders.pop().end()
