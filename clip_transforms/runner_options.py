"""What the runner's options say: how many workers there are, and whether they end with the launcher."""

from __future__ import annotations

import os

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

_DIRECT_RUNNERS = ("directrunner", "bundlebaseddirectrunner", "switchingdirectrunner", "fnapirunner")


def workers_of(options: PipelineOptions) -> int:
    """How many workers the runner's options name."""
    known = options.get_all_options()
    if is_direct(options):
        asked = known.get("direct_num_workers")
        threaded = options.view_as(DirectOptions).direct_running_mode not in (None, "in_memory")
        return (asked or os.cpu_count() or 1) if threaded else 1  # Beam's 0 is one a core
    return max([1, *(int(known.get(name) or 1) for name in ("max_num_workers", "num_workers", "parallelism"))])


def is_direct(options: PipelineOptions) -> bool:
    """Whether the runner works in this process or in children of it, and so ends with it."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.rpartition(".")[2].lower() in _DIRECT_RUNNERS
