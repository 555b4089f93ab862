"""What the runner's options say: how many workers there are, and whether they end with the launcher."""

from __future__ import annotations

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

_DIRECT_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "SwitchingDirectRunner", "FnApiRunner")


def workers_of(options: PipelineOptions) -> int:
    """How many workers the runner's options name."""
    known = options.get_all_options()
    names = ("direct_num_workers", "max_num_workers", "num_workers", "parallelism")
    return max([1, *(int(known.get(name) or 1) for name in names)])


def is_direct(options: PipelineOptions) -> bool:
    """Whether the runner works in this process or in children of it, and so ends with it."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.rpartition(".")[2] in _DIRECT_RUNNERS
