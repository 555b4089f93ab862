"""Facts about this machine and the speed of its matrix products. Every benchmark prints them first, since they vary."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SIDE, _SECONDS = 2048, 0.5


def matrix_rate(dtype: torch.dtype = torch.float32) -> float:
    """Measure the FLOP/s of bare matrix products on all cores for half a second; FLOP = 2 × multiply–adds."""
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    # Choose the number of rows by time: a machine without units for bf16 would take a minute for the whole matrix. The
    # first product wakes the threads.
    rows = 16
    while rows < _SIDE and timed(functools.partial(torch.matmul, a[:rows], b)) < _SECONDS / 4:
        rows *= 2
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS or not done:
        a[:rows] @ b
        done += 1
    return done * 2 * rows * _SIDE**2 / elapsed


def print_facts() -> None:
    """Print cores, vector units, versions, and the rates of the bare product."""
    capable = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if capable.get(name)]
    rates = ", ".join(f"{name} {matrix_rate(dtype) / 1e9:,.1f} GFLOP/s" for name, dtype in DTYPES.items())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {'/'.join(units) or 'no vector units that torch names'}, "
        f"torch {torch.__version__} on {torch.get_num_threads()} threads; bare product: {rates}",
        flush=True,
    )


def timed(function: Callable[[], object]) -> float:
    """Call a function and return its seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(rounds: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """Call every function in turn, round after round, and return the seconds by name.

    Taking turns means that a slow moment of the machine slows all functions. A first round is not timed.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of one function's seconds divided by another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
