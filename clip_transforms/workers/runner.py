"""Questions about the runner's options: how many workers it has, and whether they end with the launcher.

The options are Beam's `PipelineOptions`. Reading them does not need Beam itself.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from clip_transforms.workers.machine import check_process_count

_DIRECT_RUNNERS = ("directrunner", "bundlebaseddirectrunner", "switchingdirectrunner", "fnapirunner")


class Options(Protocol):
    """The part of Beam's PipelineOptions that is used here."""

    def get_all_options(self) -> dict[str, Any]:
        """Return every option's value by name."""


def workers_of(options: Options) -> int:
    """Return the number of workers that the runner's options ask for; 0 if this process does everything alone."""
    known = options.get_all_options()
    if is_direct(options):
        asked = known.get("direct_num_workers")
        return 0 if in_process(options) else asked or os.cpu_count() or 1  # Beam's 0 means one per core
    return max([1, *(int(known.get(name) or 1) for name in ("max_num_workers", "num_workers", "parallelism"))])


def is_direct(options: Options) -> bool:
    """Return whether the runner works in this process or its children, and so ends with this process."""
    return is_direct_runner(options.get_all_options().get("runner"))


def is_direct_runner(name: str | None) -> bool:
    """Return whether the runner of this name works in this process or its children; None is Beam's default."""
    return (name or "DirectRunner").rpartition(".")[2].lower() in _DIRECT_RUNNERS


def in_process(options: Options) -> bool:
    """Return whether this process embeds, alone or with children that report every sample to it."""
    return is_direct(options) and _running_mode(options) in (None, "in_memory")


def _running_mode(options: Options) -> str | None:
    return options.get_all_options().get("direct_running_mode")


def check_processes(asked: int, feeders: int | None, options: Options) -> None:
    """Refuse our own processes where the runner starts the workers.

    Args:
        asked: value of `--processes`.
        feeders: value of `--feeders`; None without the flag.
        options: the runner's options.
    Raises:
        ValueError: naming the flag that conflicts.
    """
    check_process_count(asked, feeders if is_direct(options) else None)
    if not asked or in_process(options):
        return
    flag = f"--runner {options.get_all_options().get('runner')}"
    if is_direct(options):
        flag = f"--direct_running_mode {_running_mode(options)}"
    raise ValueError(
        f"--processes is {asked}, but with {flag} the runner starts the workers; give one of the two flags"
    )
