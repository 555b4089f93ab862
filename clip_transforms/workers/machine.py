"""What this machine has: cores, memory that can be given back, and NVIDIA GPUs, without asking torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import os
from pathlib import Path


def cores() -> int:
    """The cores that this process may run on: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of(launcher: int, workers: int) -> int:
    """The cores that this process may count on: all, or its share if it is one of several workers of the launcher."""
    return max(1, cores() // workers) if os.getppid() == launcher else cores()


def give_back_memory() -> None:
    """Give the system what malloc holds free: pieces between what lives on, of which it keeps more as time goes by."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others have no such heap
    if trim is not None:
        trim(0)


def has_nvidia() -> bool:
    """Whether the kernel of this machine shows an NVIDIA device (under WSL, a graphics card)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def torch_is_cpu_only() -> bool:
    """Whether the installed torch is a build without CUDA, by its version."""
    return importlib.metadata.version("torch").endswith("+cpu")


def gpus_for(device: str) -> list[str]:
    """The GPUs that processes of this machine may use, as CUDA_VISIBLE_DEVICES names them; torch is not asked.

    Args:
        device: that was asked for: `auto`, `cpu` or `cuda`.
    """
    if device == "cpu" or torch_is_cpu_only() or not has_nvidia():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1)]
    # CUDA reads the list up to the first name that is none.
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))
