"""Worker processes on the launcher's machine end with the launcher, so that no orphan writes into the next run.

At its top it imports nothing but the standard library: it is the first thing that such a process runs.
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

    Workers of a cluster, and of a worker pool on this machine, are no children of the launcher and go on without it.

    Args:
        launcher: process id.
    """
    if os.getppid() == launcher and os.getpid() != launcher:
        threading.Thread(target=_watch, args=(launcher,), name="end with launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_SECONDS)
    os._exit(1)  # whatever this process is in the middle of: nothing that is not whole has a final name


def begin(launcher: int) -> None:
    """Be one of the launcher's worker processes, which ends with it from its first moment on."""
    if os.getppid() != launcher:
        sys.exit(1)  # it died while this process was starting
    end_with(launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the launcher ends this
    logging.disable(logging.WARNING)  # at import and start Beam speaks of what nobody asked for


def how_it_ended(code: int) -> str:
    """Return a phrase for the exit code of a process, as `subprocess` gives it; a negative one is a signal."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
