"""What this machine is and how fast it multiplies: every benchmark says it first, since machines differ by the day."""

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
    """FLOP/s of bare products of square matrices on all cores, over half a second; FLOP = 2 × multiply–adds."""
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    # As many rows as a moment suffices for: some machines have no units for bf16, and would take a minute for all. The
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
    """Cores, capability, versions, and the rates of the bare product."""
    capable = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if capable.get(name)]
    rates = ", ".join(f"{name} {matrix_rate(dtype) / 1e9:,.1f} GFLOP/s" for name, dtype in DTYPES.items())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {'/'.join(units) or 'no vector units that torch names'}, "
        f"torch {torch.__version__} on {torch.get_num_threads()} threads; bare product: {rates}",
        flush=True,
    )


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(rounds: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of every function in every round, one after the other: what slows the machine slows them all."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds of one function's seconds by another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
