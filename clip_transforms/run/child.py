"""One of several processes of a run on this machine: does the tasks that the launcher hands it, and tells what came of
them.

At its top it imports nothing heavy: it is the first thing that such a process runs.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any

from clip_transforms.workers.lifetime import begin

_SECONDS = 0.5


class _Launcher:
    """The launcher, as its child sees it: pickles on the standard streams."""

    def __init__(self):
        """Take the standard streams; what something else prints goes to stderr."""
        self._asks, self._listens = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def hear(self) -> Any:
        """What it says next; this process ends if it is gone."""
        try:
            return pickle.load(self._asks)
        except EOFError:
            sys.exit(1)

    def tell(self, kind: str, what: Any = None) -> None:
        """Tell it something, from any thread."""
        with self._lock:
            try:
                pickle.dump((kind, what), self._listens)
                self._listens.flush()
            except BrokenPipeError:
                os._exit(1)  # it is gone, and nothing that is not whole has a final name


class _Hearsay(logging.Handler):
    """What is logged here is said there, once and in the launcher's way."""

    def __init__(self, launcher: _Launcher):
        super().__init__()
        self._launcher = launcher

    def emit(self, record: logging.LogRecord) -> None:
        self._launcher.tell("log", (record.name, record.levelno, "%s", record.getMessage()))


class _Progress:
    """What was done since it was last told."""

    def __init__(self, launcher: _Launcher, now: Counter):
        self._launcher, self._now = launcher, now
        self._told: Counter = Counter()
        self._lock = threading.Lock()

    def tell(self) -> None:
        with self._lock:
            now = Counter(self._now)
            if now != self._told:
                self._launcher.tell("progress", now - self._told)
            self._told = now

    def keep_telling(self) -> None:
        while True:
            time.sleep(_SECONDS)
            self.tell()


def _work(launcher: _Launcher) -> None:
    """Do tasks until there is none left."""
    job, classes = launcher.hear()
    from clip_transforms.run.embed_units import PROGRESS, embed_task, load_embedder

    logging.getLogger().handlers = [_Hearsay(launcher)]
    logging.disable(logging.NOTSET)
    embedder = load_embedder(job)
    progress = _Progress(launcher, PROGRESS)
    threading.Thread(target=progress.keep_telling, name="progress", daemon=True).start()
    launcher.tell("ready")
    while (task := launcher.hear()) is not None:
        for result in embed_task(task, job, embedder, classes):
            launcher.tell("result", result)
        progress.tell()
        launcher.tell("ready")


def _sendable(error: Exception) -> Exception:
    """The error itself, where it comes out of a pickle as it went in; else its name and what it says."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # whatever a foreign class raises when it is made without the arguments that it wants
        logging.getLogger(__name__).debug("%r does not pickle", error)
    return RuntimeError(f"{type(error).__name__}: {error}")


def main(pid: int) -> None:
    """Be a child of the launcher that has this process id."""
    begin(pid)
    launcher = _Launcher()
    try:
        _work(launcher)
    except Exception as error:  # whatever it is: the launcher says it, and ends the run
        launcher.tell("error", (_sendable(error), traceback.format_exc()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
