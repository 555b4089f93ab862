"""The resources of this machine: cores, free memory of malloc, and NVIDIA GPUs. Nothing here imports torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import os
from pathlib import Path

from clip_transforms.parts.counts import counted

_PROCESSES_PER_CORE = 16
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of cores in each period, or `max`


def cores() -> int:
    """Return the number of cores that this process may use. Schedulers and containers may allow fewer than exist."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):
        return allowed
    return max(1, min(allowed, quota // period))


def cores_of(launcher: int, workers: int) -> int:
    """Return the number of cores that this process can count on.

    A child of the launcher gets an equal share; any other worker gets all.

    Args:
        launcher: process id of the launcher.
        workers: number of workers of the run; 0 if the launcher does everything alone.
    """
    return max(1, cores() // max(1, workers)) if os.getppid() == launcher else cores()


def give_back_memory() -> None:
    """Return malloc's free memory to the system. Otherwise malloc keeps more and more free pieces over time."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it, and only glibc needs it
    if trim is not None:
        trim(0)


def has_nvidia() -> bool:
    """Return whether the kernel shows an NVIDIA device (under WSL, any graphics card)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def torch_is_cpu_only() -> bool:
    """Return whether the version of the installed torch names a build without CUDA."""
    return importlib.metadata.version("torch").endswith("+cpu")


def check_device(device: str) -> None:
    """Refuse the device `cuda` on a machine that has no CUDA. This imports no torch.

    Raises:
        ValueError: naming what is missing.
    """
    if device != "cuda":
        return
    if not has_nvidia():
        raise ValueError("--device is cuda, but this machine shows no NVIDIA device; use --device auto or --device cpu")
    if torch_is_cpu_only():
        raise ValueError(
            f"--device is cuda, but torch {importlib.metadata.version('torch')} is built without CUDA; install a CUDA "
            "build of torch, or use --device cpu"
        )


def check_process_count(processes: int, feeders: int | None) -> None:
    """Refuse more processes than any machine of this size could use.

    Args:
        processes: value of `--processes`.
        feeders: value of `--feeders`; None without the flag.
    Raises:
        ValueError: naming the largest number.
    """
    most = _PROCESSES_PER_CORE * cores()
    room = f"({_PROCESSES_PER_CORE} for each of the {counted(cores(), 'core')} of this machine)"
    if processes > most:
        raise ValueError(
            f"--processes is {processes}, but it must be 1 to {most} {room}, or 0 to choose the number by the machine"
        )
    most //= max(1, processes)
    if feeders is not None and feeders > most:
        beside = f" beside --processes {processes}" if processes > 1 else ""
        raise ValueError(f"--feeders is {feeders}, but{beside} it must be 0 to {most} {room}")


def gpus_for(device: str) -> list[str]:
    """Return the GPUs that processes on this machine may use, in the form of CUDA_VISIBLE_DEVICES.

    Args:
        device: the requested device: `auto`, `cpu` or `cuda`.
    """
    if device == "cpu" or torch_is_cpu_only() or not has_nvidia():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1)]
    # CUDA stops reading the list at the first name that is invalid.
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))
