"""One of several processes of a run on this machine. It does the tasks that the launcher hands it, and reports results.

It is the first module that such a process runs, so it imports nothing heavy at its top.
"""

from __future__ import annotations

import gc
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
# What torch and CUDA say where a GPU has no room for a batch, a model, a library or another process at all.
_FULL = ("out of memory", "ALLOC_FAILED", "busy or unavailable")


class _Launcher:
    """The process's view of the launcher. They exchange pickles over the standard streams."""

    def __init__(self):
        """Take the standard streams over. Anything else that is printed goes to stderr."""
        self._asks, self._listens = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def hear(self) -> Any:
        """Wait for the next message; end this process if the launcher is gone."""
        try:
            return pickle.load(self._asks)
        except EOFError:
            sys.exit(1)

    def tell(self, kind: str, what: Any = None) -> None:
        """Send a message. Any thread may call this."""
        with self._lock:
            try:
                pickle.dump((kind, what), self._listens)
                self._listens.flush()
            except BrokenPipeError:
                os._exit(1)  # the launcher is gone; parts that are not whole have no final name


class _LogSender(logging.Handler):
    """Sends log records to the launcher, which logs them once and in its own format."""

    def __init__(self, launcher: _Launcher):
        super().__init__()
        self._launcher = launcher

    def emit(self, record: logging.LogRecord) -> None:
        self._launcher.tell("log", (record.name, record.levelno, "%s", record.getMessage()))


class _Progress:
    """Reports to the launcher how much was done since the last report."""

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
    """Do tasks until none is left, or until the GPU that it shares has no room for this process."""
    job, classes, shares = launcher.hear()
    from clip_transforms.run.embed_units import PROGRESS, embed_task, load_embedder

    logging.getLogger().handlers = [_LogSender(launcher)]
    logging.disable(logging.NOTSET)
    progress = _Progress(launcher, PROGRESS)
    threading.Thread(target=progress.keep_telling, name="progress", daemon=True).start()
    while shares is not None:
        try:
            embedder = load_embedder(job)
            if shares:
                embedder.claim_memory()
            launcher.tell("ready")
            while (task := launcher.hear()) is not None:
                for result in embed_task(task, job, embedder, classes):
                    launcher.tell("result", result)
                progress.tell()
                launcher.tell("ready")
            return
        except RuntimeError as error:
            if not shares or not any(said in str(error) for said in _FULL):
                raise
        embedder = None
        gc.collect()  # a traceback may hold the model still, and the next one must find its memory free
        launcher.tell("full")
        shares = launcher.hear()  # False: it has the GPU for itself now; None: it ends


def _sendable(error: Exception) -> Exception:
    """Return the error itself if it survives pickling, and otherwise a RuntimeError with its name and message."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # some classes raise when pickle calls them without their arguments
        logging.getLogger(__name__).debug("%r does not pickle", error)
    return RuntimeError(f"{type(error).__name__}: {error}")


def main(pid: int) -> None:
    """Work for the launcher that has this process id."""
    begin(pid)
    launcher = _Launcher()
    try:
        _work(launcher)
    except Exception as error:  # the launcher raises it and ends the run
        launcher.tell("error", (_sendable(error), traceback.format_exc()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
