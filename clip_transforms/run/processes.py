"""Several processes of one run on this machine: how many, which GPU is whose, and what they are told and tell.

Each is a child of the launcher, gets the tasks one at a time, so that a fast one does more, and ends with it.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_transforms.run.job import Job, read_units
from clip_transforms.run.summary import PartResult
from clip_transforms.workers.machine import cores, gpus_for

_CORES_EACH = 8  # a forward pass on more cores than these gains less than a second process does
_SECONDS = 0.5
_OF_ALL = (signal.SIGTERM, signal.SIGHUP)  # what a scheduler or a terminal sends to the launcher and its children alike
_LOGGER = logging.getLogger(__name__)


def count_processes(asked: int, gpus: Sequence[str], pending: int) -> int:
    """How many processes embed; one means that it is the launcher itself.

    Args:
        asked: `--processes`; 0 for one per GPU, or one per eight cores where there is none.
        gpus: from `gpus_for`.
        pending: units to be embedded, of which each process must get one.
    """
    return max(1, min(asked or len(gpus) or cores() // _CORES_EACH, pending))


def gpus_of(processes: int, gpus: Sequence[str]) -> list[str | None]:
    """The GPU of each process, by turns; None where there is none."""
    return [gpus[i % len(gpus)] if gpus else None for i in range(processes)]


def embed_in_processes(job: Job, classes: Mapping[str, str], progress: Counter) -> Iterator[PartResult]:
    """Do all tasks of a run in `job.workers` processes.

    One that dies takes the unit with it that it was in the middle of, and the rest of its task. The others do the tasks
    that are left; then the run fails, and the next one does what is missing.

    Args:
        job: the run.
        classes: taxonomy → URI of its class embeddings.
        progress: what the processes did is added to it.
    Yields:
        A PartResult as soon as a unit is committed.
    Raises:
        ChildProcessError: naming the first process that died.
        Exception: what went wrong in a process, at once, as it would if it had gone wrong in this one.
    """
    tasks = collections.deque(job.tasks())
    heard: queue.SimpleQueue = queue.SimpleQueue()
    places = gpus_of(job.workers, gpus_for(job.settings.model.device))
    processes: list[_Process] = []
    try:
        for number, gpu in enumerate(places, 1):
            processes.append(_Process(f"process {number} of {len(places)}", gpu, heard))
            processes[-1].tell((job, dict(classes)))
        yield from _hand_out(tasks, job, heard, len(processes), progress)
    finally:
        for process in processes:
            process.end()


def _hand_out(
    tasks: collections.deque, job: Job, heard: queue.SimpleQueue, running: int, progress: Counter
) -> Iterator[PartResult]:
    """Answer what is heard until the last process has ended."""
    died = []
    while running:
        process, kind, said = heard.get()
        if kind == "ready":
            process.begin(tasks.popleft() if tasks else None, job)
        elif kind == "result":
            process.done += not said.skipped
            yield said
        elif kind == "progress":
            progress.update(said)
        elif kind == "log":
            logging.getLogger(said[0]).log(*said[1:])
        elif kind == "error":
            error, lines = said
            raise error from RuntimeError(f"in {process.name} (pid {process.pid}):\n{lines}")
        else:
            running -= 1
            if not process.dismissed:
                died.append(_obituary(process, code=said))
                if running:
                    _LOGGER.warning("%s; the others go on with what is left", died[-1])
    if died:
        raise ChildProcessError(died[0])


def _obituary(process: _Process, code: int) -> str:
    """What is known of a process that ended before it was told to."""
    if -code in _OF_ALL:
        time.sleep(_SECONDS)  # the launcher is ended too then, and says so
    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    cure = " (if memory ran out: fewer --processes need less)" if -code == signal.SIGKILL else ""
    return f"{process.name} (pid {process.pid}) {cause} {process.place}{cure}"


class _Process:
    """A child of the launcher, as the launcher sees it.

    Attributes:
        name: such as `process 2 of 4`.
        pid: its process id.
        done: units of its task that it has embedded.
        dismissed: whether it was told that there are no more tasks.
    """

    def __init__(self, name: str, gpu: str | None, heard: queue.SimpleQueue):
        """Start it.

        Args:
            name: to call it in messages.
            gpu: that it may use, as CUDA_VISIBLE_DEVICES names it; None for all that the launcher may use.
            heard: where (process, kind, what it said) is put; at its end the kind is `ended`, with the exit code.
        """
        path = os.pathsep.join(filter(None, sys.path))  # what the launcher finds, wherever it was started
        environment = os.environ | {"PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
        command = [sys.executable, "-m", "clip_transforms.run.child", str(os.getpid())]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.name, self.pid = name, self._popen.pid
        self.done, self.dismissed = 0, False
        self._shards: list[str] | None = None
        self._thread = threading.Thread(target=self._listen, args=(heard,), name=name, daemon=True)
        self._thread.start()

    def _listen(self, heard: queue.SimpleQueue) -> None:
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a word
            while True:
                heard.put((self, *pickle.load(self._popen.stdout)))
        heard.put((self, "ended", self._popen.wait()))

    def tell(self, what: Any) -> None:
        """Send it something."""
        with contextlib.suppress(BrokenPipeError):  # it died, which will be heard
            pickle.dump(what, self._popen.stdin)
            self._popen.stdin.flush()

    def begin(self, task: tuple[int, int] | None, job: Job) -> None:
        """Hand it a task, or none, so that it ends."""
        self.done, self.dismissed = 0, task is None
        self._shards = task and [planned.unit.shard for planned in read_units(job, *task) if not planned.is_committed]
        self.tell(task)

    @property
    def place(self) -> str:
        """What it is doing."""
        if self._shards is None:
            return "before its first unit"
        return f"in the middle of {self._shards[self.done]}" if self.done < len(self._shards) else "between two units"

    def end(self) -> None:
        """End it, whatever it is doing, and wait for that: nothing that is not whole has a final name."""
        self._popen.kill()
        self._popen.wait()
        self._thread.join()
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._popen.stdout.close()
