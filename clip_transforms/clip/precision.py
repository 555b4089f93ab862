"""What `--precision auto` means on a device, for a model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

# A linear layer of the ViT-B models, and as many rows as five pictures have tokens.
_ROWS, _WIDTH, _HIDDEN = 256, 768, 3072
_FEW_ROWS = 8  # for a first look: without units for bf16, a whole product could take seconds
_TIMES = 3
# Processors with units for bf16 lie above (AMX 6 and more, AVX512_BF16 of AMD 2.1 to 2.5), those without below 1, where
# AVX512_BF16 of Intel is too.
_FASTER = 1.5


def resolve_precision(
    precision: str, device: torch.device, is_resnet: bool = False, stored: torch.dtype = torch.float32
) -> str:
    """Return the precision to use.

    On a GPU, `auto` is fp16 for a checkpoint that is stored in fp16, as OpenAI's are: they were published to run so,
    and its steps are eight times finer than those of bf16. For other checkpoints it is bf16 from Ampere on, and fp16
    before. On a CPU it is bf16 if a product shows that it is faster (see `bf16_speedup`), else fp32; for ResNets it is
    always fp32 there: their batch norms add the rounding of bf16 up, to cosines of 0.98 (docs/fidelity.md).

    Args:
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        device: the device that the model is on.
        is_resnet: whether the vision tower is a ResNet.
        stored: the type in which the checkpoint holds its projections.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        if stored == torch.float16:
            return "fp16"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if not is_resnet and bf16_speedup() >= _FASTER else "fp32"


@functools.lru_cache(maxsize=1)
def bf16_speedup() -> float:
    """Return how many times as fast as fp32 this CPU multiplies in bf16; it is measured once a process."""
    return measure_bf16()


def measure_bf16() -> float:
    """Measure it, in some 0.1 s.

    Names of instruction sets do not tell: AVX512_BF16 more than doubles the speed of some processors, and slows others.
    """
    rows, weights = torch.ones(_ROWS, _WIDTH), torch.ones(_HIDDEN, _WIDTH)
    half, half_weights = rows.bfloat16(), weights.bfloat16()
    linear = torch.nn.functional.linear
    linear(rows, weights), linear(half[:_FEW_ROWS], half_weights)  # the first calls prepare their kernels
    if _seconds(lambda: linear(half[:_FEW_ROWS], half_weights)) > _seconds(lambda: linear(rows, weights)):
        return 0.0
    # In turn, and the best of several, so that other work on the machine counts for neither.
    calls = (lambda: linear(rows, weights)), (lambda: linear(half, half_weights))
    turns = [[_seconds(call) for call in calls] for _ in range(_TIMES)]
    of_single, of_half = (min(seconds) for seconds in zip(*turns, strict=True))
    return of_single / of_half


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
