"""A process that this one starts, and talks with: pickles over its standard streams. It ends with this one."""

from __future__ import annotations

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
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_transforms.workers.lifetime import how_it_ended

_SECONDS = 0.5
_SENT_TO_ALL = (signal.SIGTERM, signal.SIGHUP)  # schedulers and terminals send these to a process and its children


class ChildProcess:
    """A module of ours that runs in a process of its own.

    Attributes:
        name: its name in messages, such as `process 2 of 4`.
        pid: its process id.
    """

    def __init__(
        self,
        module: str,
        name: str,
        heard: queue.SimpleQueue,
        environment: Mapping[str, str],
        files: Sequence[int] = (),
        answer: Callable[[Any], Any] | None = None,
    ):
        """Start it. Its arguments are the id of this process and the files.

        Args:
            module: the module.
            name: its name in messages.
            heard: receives (process, kind, content) for each message; when it ends, the kind is `ended` and the content
                is its exit code.
            environment: variables that it has besides those of this process.
            files: descriptors of open files that it shares.
            answer: answers its messages of the kind `ask`, in a thread of this process.
        """
        path = os.pathsep.join(filter(None, sys.path))  # so that the process finds the same modules as this one
        command = [sys.executable, "-m", module, str(os.getpid()), *map(str, files)]
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **environment},
            pass_fds=files,
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._to, self._from = self._popen.stdin, self._popen.stdout
        self.name, self.pid, self._answer = name, self._popen.pid, answer
        self._thread = threading.Thread(target=self._listen, args=(heard,), name=name, daemon=True)
        self._thread.start()

    def _listen(self, heard: queue.SimpleQueue) -> None:
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a message
            while True:
                kind, said = pickle.load(self._from)
                if kind != "ask" or self._answer is None:
                    heard.put((self, kind, said))
                    continue
                try:
                    answer = self._answer(said)
                except Exception as error:  # it is raised where messages are heard
                    heard.put((self, "error", (error, traceback.format_exc())))
                else:
                    self.tell(("answer", answer))
        heard.put((self, "ended", self._popen.wait()))

    def tell(self, what: Any) -> None:
        """Send it a message."""
        with contextlib.suppress(BrokenPipeError):  # it died; `_listen` reports that
            pickle.dump(what, self._to, pickle.HIGHEST_PROTOCOL)
            self._to.flush()

    def end(self) -> None:
        """Kill it and wait until it has ended. Parts that are not whole have no final name, so nothing is damaged."""
        self._popen.kill()
        self._popen.wait()
        if threading.current_thread() is not self._thread:  # which may be where the last reference is dropped
            self._thread.join()
        with contextlib.suppress(BrokenPipeError):
            self._to.close()
        self._from.close()


def pass_on(process: ChildProcess, kind: str, said: Any, progress: Counter) -> None:
    """Do what any process's message of this kind asks for: count its progress, log its line, raise its error."""
    if kind == "progress":
        progress.update(said)
    elif kind == "log":
        logging.getLogger(said[0]).log(*said[1:])
    else:
        error, lines = said
        raise error from RuntimeError(f"in {process.name} (pid {process.pid}):\n{lines}")


def obituary(process: ChildProcess, code: int, place: str, flag: str) -> str:
    """Say what is known about a process that ended too early.

    Args:
        process: the process.
        code: its exit code.
        place: where it was in its work.
        flag: the flag that says how many such processes there are.
    """
    if -code in _SENT_TO_ALL:
        time.sleep(_SECONDS)  # this process got the signal too, and is about to say so and end
    cure = f" (if memory ran out: fewer {flag} need less)" if -code == signal.SIGKILL else ""
    return f"{process.name} (pid {process.pid}) {how_it_ended(code)} {place}{cure}"
