"""What a worker process owes its launcher: to end with it, so that no orphan writes into the next run."""

from __future__ import annotations

import functools
import os
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
