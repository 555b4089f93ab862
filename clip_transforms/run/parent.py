"""A process's view of the one that started it: messages to and from there. It imports nothing heavy at its top."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

_SECONDS = 0.5


class Parent:
    """The process that started this one. They exchange pickles over the standard streams."""

    def __init__(self):
        """Take the standard streams over. Anything else that is printed goes to stderr."""
        self._asks, self._listens = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def hear(self) -> Any:
        """Wait for the next message; end this process if the other one is gone."""
        try:
            return pickle.load(self._asks)
        except EOFError:
            os._exit(1)  # any thread may have asked; parts that are not whole have no final name

    def tell(self, kind: str, what: Any = None) -> None:
        """Send a message. Any thread may call this."""
        with self._lock:
            try:
                pickle.dump((kind, what), self._listens, pickle.HIGHEST_PROTOCOL)
                self._listens.flush()
            except BrokenPipeError:
                os._exit(1)  # the parent is gone; parts that are not whole have no final name

    @contextlib.contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Tell of an error that ends the block; the parent raises it and ends the run."""
        try:
            yield
        except Exception as error:
            self.tell("error", (sendable(error), traceback.format_exc()))

    def get_logs(self) -> None:
        """Send everything that is logged from now on; the parent logs it once and in its own format."""
        logging.getLogger().handlers = [_LogSender(self)]
        logging.disable(logging.NOTSET)


class _LogSender(logging.Handler):
    def __init__(self, parent: Parent):
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self._parent.tell("log", (record.name, record.levelno, "%s", record.getMessage()))


class Progress:
    """Reports how much was done since the last report, now and then, and when it is told to."""

    def __init__(self, parent: Parent, now: Counter):
        """Begin.

        Args:
            parent: gets the reports.
            now: what was done so far in this process.
        """
        self._parent, self._now = parent, now
        self._told: Counter = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self._keep_telling, name="progress", daemon=True).start()

    def tell(self) -> None:
        """Report now."""
        with self._lock:
            now = Counter(self._now)
            if now != self._told:
                self._parent.tell("progress", now - self._told)
            self._told = now

    def _keep_telling(self) -> None:
        while True:
            time.sleep(_SECONDS)
            self.tell()


def sendable(error: Exception) -> Exception:
    """Return the error itself if it survives pickling, and otherwise a RuntimeError with its name and message."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # some classes raise when pickle calls them without their arguments
        logging.getLogger(__name__).debug("%r does not pickle", error)
    return RuntimeError(f"{type(error).__name__}: {error}")
