"""Several processes of one run on this machine: how many there are, which GPU each uses, and how they are directed.

Each process is a child of the launcher and ends with it. It gets one task at a time, so a fast process does more tasks.
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
from clip_transforms.workers.lifetime import how_it_ended
from clip_transforms.workers.machine import cores, gpus_for

_CORES_EACH = 8  # beyond this, a second process gains more than further cores for one forward pass
_SECONDS = 0.5
_SENT_TO_ALL = (signal.SIGTERM, signal.SIGHUP)  # schedulers and terminals send these to the launcher and its children
_LOGGER = logging.getLogger(__name__)


def count_processes(asked: int, gpus: Sequence[str], pending: int) -> int:
    """Decide how many processes embed; 1 means the launcher itself.

    Args:
        asked: `--processes`; 0 means one per GPU, or one per eight cores without a GPU.
        gpus: the GPUs, from `gpus_for`.
        pending: number of units to embed. There are never more processes than units.
    """
    return max(1, min(asked or len(gpus) or cores() // _CORES_EACH, pending))


def gpus_of(processes: int, gpus: Sequence[str]) -> list[str | None]:
    """Deal the GPUs out to the processes in turn; None for each process if there is no GPU."""
    return [gpus[i % len(gpus)] if gpus else None for i in range(processes)]


def embed_in_processes(job: Job, classes: Mapping[str, str], progress: Counter) -> Iterator[PartResult]:
    """Do all tasks of a run in `job.workers` processes.

    If a process dies, its current unit and the rest of its task are not done. The others do the remaining tasks, and
    then the run fails. The next run does what is missing.

    Args:
        job: the run.
        classes: taxonomy → URI of its class embeddings.
        progress: a counter to which the work of the processes is added.
    Yields:
        A PartResult as soon as a unit is committed.
    Raises:
        ChildProcessError: if a process died; it names the first one.
        Exception: any error in a process ends the run at once and is raised here.
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
    """Answer the processes until the last one has ended."""
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
                    _LOGGER.warning("%s died; the others go on with what is left", process.name)
    if died:
        raise ChildProcessError(died[0])


def _obituary(process: _Process, code: int) -> str:
    """Say what is known about a process that ended too early."""
    if -code in _SENT_TO_ALL:
        time.sleep(_SECONDS)  # the launcher got the signal too, and is about to say so and end
    cure = " (if memory ran out: fewer --processes need less)" if -code == signal.SIGKILL else ""
    return f"{process.name} (pid {process.pid}) {how_it_ended(code)} {process.place}{cure}"


class _Process:
    """The launcher's view of one of its processes.

    Attributes:
        name: its name in messages, such as `process 2 of 4`.
        pid: its process id.
        done: number of units of its task that it has embedded.
        dismissed: whether it was told that there are no more tasks.
    """

    def __init__(self, name: str, gpu: str | None, heard: queue.SimpleQueue):
        """Start it.

        Args:
            name: its name in messages.
            gpu: the GPU that it may use, as CUDA_VISIBLE_DEVICES names it; None for every GPU of the launcher.
            heard: receives (process, kind, content) for each message; when it ends, the kind is `ended` and the content
                is its exit code.
        """
        path = os.pathsep.join(filter(None, sys.path))  # so that the process finds the same modules as the launcher
        environment = os.environ | {"PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
        command = [sys.executable, "-m", "clip_transforms.run.child", str(os.getpid())]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._to, self._from = self._popen.stdin, self._popen.stdout
        self.name, self.pid = name, self._popen.pid
        self.done, self.dismissed = 0, False
        self._shards: list[str] | None = None
        self._thread = threading.Thread(target=self._listen, args=(heard,), name=name, daemon=True)
        self._thread.start()

    def _listen(self, heard: queue.SimpleQueue) -> None:
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a message
            while True:
                heard.put((self, *pickle.load(self._from)))
        heard.put((self, "ended", self._popen.wait()))

    def tell(self, what: Any) -> None:
        """Send it a message."""
        with contextlib.suppress(BrokenPipeError):  # it died; `_listen` reports that
            pickle.dump(what, self._to)
            self._to.flush()

    def begin(self, task: tuple[int, int] | None, job: Job) -> None:
        """Hand it a task; None tells it to end."""
        self.done, self.dismissed = 0, task is None
        self._shards = task and [planned.unit.shard for planned in read_units(job, *task) if not planned.is_committed]
        self.tell(task)

    @property
    def place(self) -> str:
        """Where it is in its work, for a message."""
        if self._shards is None:
            return "before its first unit"
        return f"in the middle of {self._shards[self.done]}" if self.done < len(self._shards) else "between two units"

    def end(self) -> None:
        """Kill it and wait until it has ended. Parts that are not whole have no final name, so nothing is damaged."""
        self._popen.kill()
        self._popen.wait()
        self._thread.join()
        with contextlib.suppress(BrokenPipeError):
            self._to.close()
        self._from.close()
