"""Let worker processes on the launcher's machine end with the launcher, so that no orphan writes into the next run.

At its top this module imports only the standard library: it is the first thing that such a process runs.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time

_SECONDS = 0.5


@functools.lru_cache(maxsize=1)
def end_with(launcher: int) -> None:
    """End this process soon after its parent, if the parent is the launcher.

    Workers of a cluster or of a worker pool are not children of the launcher; they go on without it.

    Args:
        launcher: process id of the launcher.
    """
    if os.getppid() == launcher and os.getpid() != launcher:
        threading.Thread(target=_watch, args=(launcher,), name="end with launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_SECONDS)
    os._exit(1)  # at any moment this is safe: a file gets its final name only when it is whole


def begin(launcher: int) -> None:
    """Begin as a worker process of the launcher, and end with it from the first moment on.

    Args:
        launcher: process id of the launcher.
    """
    if os.getppid() != launcher:
        sys.exit(1)  # the launcher died while this process was starting
    end_with(launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process; the launcher ends this one
    logging.disable(logging.WARNING)  # Beam warns at import of packages that nobody asked for


def how_it_ended(code: int) -> str:
    """Return a phrase for a process's exit code.

    Args:
        code: as `subprocess` gives it: negative for a signal.
    """
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
