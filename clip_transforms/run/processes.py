"""Several processes of one run on this machine, and how they are directed.

Each process is a child of the launcher and ends with it. It gets one task at a time, so a fast process does more tasks.
"""

from __future__ import annotations

import collections
import logging
import queue
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from clip_transforms.parts.counts import counted
from clip_transforms.run.child_process import ChildProcess, obituary, pass_on
from clip_transforms.run.job import Job, read_units
from clip_transforms.run.summary import PartResult

_LOGGER = logging.getLogger(__name__)


def embed_in_processes(
    job: Job, gpus: Sequence[str | None], classes: Mapping[str, str], progress: Counter
) -> Iterator[PartResult]:
    """Do all tasks of a run in several processes.

    If a process dies, its current unit and the rest of its task are not done. The others do the remaining tasks, and
    then the run fails. The next run does what is missing.

    If a GPU has too little memory for all its processes, one that found no room ends, and the others do its task. The
    last process of a GPU goes on as if it had always been alone.

    Args:
        job: the run.
        gpus: the GPU of each process; None without one.
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
    processes: list[_Process] = []
    try:
        for number, gpu in enumerate(gpus, 1):
            processes.append(_Process(f"process {number} of {len(gpus)}", gpu, heard))
            processes[-1].tell((job, dict(classes), gpu is not None and gpus.count(gpu) > 1))
        yield from _hand_out(tasks, job, heard, processes, progress)
    finally:
        for process in processes:
            process.end()


def _hand_out(
    tasks: collections.deque, job: Job, heard: queue.SimpleQueue, processes: Sequence[_Process], progress: Counter
) -> Iterator[PartResult]:
    """Answer the processes until the last one has ended."""
    died, running = [], len(processes)
    while running:
        process, kind, said = heard.get()
        if kind == "ready":
            process.begin(tasks.popleft() if tasks else None, job)
        elif kind == "full":
            tasks.extendleft(process.give_back())
            if others := sum(other.gpu == process.gpu and other.goes_on for other in processes if other is not process):
                _LOGGER.warning(
                    "GPU %s has no room for %s, which ends; %s there %s on",
                    process.gpu,
                    process.name,
                    counted(others, "other process", "other processes"),
                    "goes" if others == 1 else "go",
                )
                process.begin(None, job)
            else:
                process.tell(False)
        elif kind == "result":
            process.done += not said.skipped
            yield said
        elif kind == "ended":
            running -= 1
            process.ended = True
            if not process.dismissed:
                died.append(obituary(process, said, process.place, "--processes"))
                if running:
                    _LOGGER.warning("%s died; the others go on with what is left", process.name)
        else:
            pass_on(process, kind, said, progress)
    if died:
        raise ChildProcessError(died[0])


class _Process(ChildProcess):
    """The launcher's view of one of its processes.

    Attributes:
        gpu: the GPU that it uses; None without one.
        done: number of units of its task that it has embedded.
        dismissed: whether it was told that there are no more tasks for it.
        ended: whether it has ended.
    """

    def __init__(self, name: str, gpu: str | None, heard: queue.SimpleQueue):
        """Start it.

        Args:
            name: its name in messages, such as `process 2 of 4`.
            gpu: the GPU that it may use, as CUDA_VISIBLE_DEVICES names it; None for every GPU of the launcher.
            heard: receives its messages.
        """
        self.gpu = gpu
        self.done, self.dismissed, self.ended = 0, False, False
        self._task: tuple[int, int] | None = None
        self._shards: list[str] | None = None
        environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        super().__init__("clip_transforms.run.child", name, heard, environment)

    def begin(self, task: tuple[int, int] | None, job: Job) -> None:
        """Hand it a task; None tells it to end."""
        self.done, self.dismissed, self._task = 0, task is None, task
        self._shards = task and [planned.unit.shard for planned in read_units(job, *task) if not planned.is_committed]
        self.tell(task)

    def give_back(self) -> list[tuple[int, int]]:
        """Take from it what it has not done of its task: one task, or none."""
        task, done = self._task, self.done
        self.done, self._task, self._shards = 0, None, None
        return [(task[0] + done, task[1])] if task else []

    @property
    def goes_on(self) -> bool:
        """Whether it is at work, or will be."""
        return not (self.dismissed or self.ended)

    @property
    def place(self) -> str:
        """Where it is in its work, for a message."""
        if self._shards is None:
            return "before its first unit"
        return f"in the middle of {self._shards[self.done]}" if self.done < len(self._shards) else "between two units"
