"""A worker process on the launcher's machine: it ends with the launcher, so that no orphan writes into the next run.

At its top it imports nothing but the standard library: it is the first thing that such a process runs.
"""

from __future__ import annotations

import ctypes
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


def cores_of(launcher: int, workers: int) -> int:
    """The cores that this process may count on: all, or its share if it is one of several workers of the launcher."""
    return max(1, cores() // workers) if os.getppid() == launcher else cores()


def cores() -> int:
    """The cores that this process may run on: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Give the system what malloc holds free: pieces between what lives on, of which it keeps more as time goes by."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others have no such heap
    if trim is not None:
        trim(0)


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


def main(launcher: int) -> None:
    """Be one of Beam's."""
    begin(launcher)
    from apache_beam.runners.worker import sdk_worker_main

    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    logging.getLogger().handlers.clear()  # what is said goes to the launcher, which says it once
    logging.disable(logging.INFO)
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
