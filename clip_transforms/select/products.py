"""Products of queries and rows, and how far they may be from the exact ones."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_transforms.select.cosines import slack

_MANY = 256  # queries; for fewer, reading decides how long a search takes
# Rounding both vectors to bf16 changes a product by 2 · 2^-9 of their lengths, and rounding the product by 2^-9 of it.
_OF_BF16 = 0.006
Multiply = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]
_ONE_AT_A_TIME = threading.Lock()  # torch would use all cores for each of several threads


def ways(queries: int) -> tuple[Multiply, ...]:
    """Return how to multiply so many queries, the quickest way first; the last is in float32."""
    return (in_bf16, in_float32) if queries >= _MANY and has_amx() else (in_float32,)


def in_float32(queries: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Multiply float32 [q, d] and [n, d].

    Returns:
        float32 [q, n], and how far a product of vectors of length 1 may be from the exact one.
    """
    return queries @ vectors.T, slack(queries.shape[1])


def in_bf16(queries: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Do the same in bf16, for which the processor may have units (AMX)."""
    import torch  # takes a second to import, which only pays where there is much to multiply

    with _ONE_AT_A_TIME, torch.inference_mode():
        a, b = (torch.from_numpy(of).bfloat16() for of in (queries, vectors))
        return (a @ b.T).float().numpy(), _OF_BF16


@functools.cache
def has_amx() -> bool:
    """Return whether the processor has AMX for bf16. AVX512-BF16 alone is no faster than float32."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
