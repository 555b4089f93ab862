"""What the runner's options say: how many workers there are, and whether they end with the launcher.

The options are Beam's `PipelineOptions`; Beam itself is not needed to read them.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from clip_transforms.workers.machine import cores

_DIRECT_RUNNERS = ("directrunner", "bundlebaseddirectrunner", "switchingdirectrunner", "fnapirunner")
_PROCESSES_PER_CORE = 16


class Options(Protocol):
    """What of Beam's PipelineOptions is needed here."""

    def get_all_options(self) -> dict[str, Any]:
        """Every option by name, with its value."""


def workers_of(options: Options) -> int:
    """How many workers the runner's options name."""
    known = options.get_all_options()
    if is_direct(options):
        asked = known.get("direct_num_workers")
        return 1 if in_process(options) else asked or os.cpu_count() or 1  # Beam's 0 is one a core
    return max([1, *(int(known.get(name) or 1) for name in ("max_num_workers", "num_workers", "parallelism"))])


def is_direct(options: Options) -> bool:
    """Whether the runner works in this process or in children of it, and so ends with it."""
    runner = options.get_all_options().get("runner") or "DirectRunner"
    return runner.rpartition(".")[2].lower() in _DIRECT_RUNNERS


def in_process(options: Options) -> bool:
    """Whether the work is done inside this process, or in children of it that tell it of every sample."""
    return is_direct(options) and _running_mode(options) in (None, "in_memory")


def _running_mode(options: Options) -> str | None:
    return options.get_all_options().get("direct_running_mode")


def check_processes(asked: int, options: Options) -> None:
    """Refuse processes of ours beside workers of the runner's.

    Args:
        asked: `--processes`.
        options: of the runner.
    Raises:
        ValueError: naming the flag that is in the way.
    """
    most = _PROCESSES_PER_CORE * cores()
    if asked > most:
        raise ValueError(f"--processes is {asked}, but it must be 1 to {most} on this machine, or 0 to choose by it")
    if not asked or in_process(options):
        return
    flag = f"--runner {options.get_all_options().get('runner')}"
    if is_direct(options):
        flag = f"--direct_running_mode {_running_mode(options)}"
    raise ValueError(
        f"--processes is {asked}, but with {flag} it is the runner that starts the workers; give one of the two flags"
    )
