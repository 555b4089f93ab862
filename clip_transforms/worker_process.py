"""Workers and their launcher: how many there are, whether they end with it, so that no orphan lives on."""

from __future__ import annotations

import functools
import os
import threading
import time

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

_DIRECT_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "SwitchingDirectRunner", "FnApiRunner")
_SECONDS = 0.5


def workers_of(options: PipelineOptions) -> int:
    """How many workers the runner's options name."""
    known = options.get_all_options()
    names = ("direct_num_workers", "max_num_workers", "num_workers", "parallelism")
    return max([1, *(int(known.get(name) or 1) for name in names)])


def is_direct(options: PipelineOptions) -> bool:
    """Whether the runner works in this process or in children of it, and so ends with it."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.rpartition(".")[2] in _DIRECT_RUNNERS


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
