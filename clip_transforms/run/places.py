"""How many processes of this machine embed, and the GPU of each: by cores, GPUs, their free memory and the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.model_spec import BATCH_SIZES
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.tensor_shapes import parameters
from clip_transforms.parts.counts import counted
from clip_transforms.run.settings import Settings
from clip_transforms.workers.gpu_memory import free_bytes
from clip_transforms.workers.machine import cores, gpus_for

MOST_A_GPU = 8  # together they feed more than any GPU embeds
_CORES_EACH = 8  # beyond this, a second process gains more than further cores for one forward pass
_CORES_A_GPU = 32  # feeders on more of them would keep the interpreter's lock of a process always held

# The estimate of a process's memory on a GPU. What a card really takes is unmeasured, so each process tries it out.
_ROOM = 0.9  # fraction of the free memory that is planned with; the launcher may embed classes in the rest
_CONTEXT_BYTES = 1 << 30  # CUDA's context, its kernels, and the workspaces of its libraries
# Bytes a weight. Of a model in fp16 a copy in fp32 may be made (decision 191).
_WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 6, "auto": 6}
_VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "auto": 2}
_BATCHES = 2  # a GPU has two under way
# The most values that our pass holds at once, as a test counts them: in a transformer's attention, or beside the inner
# values of its MLP, in widths for each place; in a ResNet in what its stem gives.
_ATTENTION, _BESIDE_MLP, _STEMS = 9, 4, 2.625


@dataclasses.dataclass(frozen=True)
class Places:
    """The processes that embed on this machine.

    Attributes:
        gpus: the GPU of each, as CUDA_VISIBLE_DEVICES names it; None without one. A single process is the launcher
            itself.
        feeders: number of feeders of each.
        line: what is said of it before the run; empty if there is nothing to say.
    """

    gpus: tuple[str | None, ...]
    feeders: int
    line: str


def find_places(settings: Settings, checkpoint: Checkpoint, pending: int) -> Places:
    """Decide how many processes embed on this machine. There are never more than units, and at least one.

    Args:
        settings: the run's settings; with `processes` the number is as asked.
        checkpoint: the model.
        pending: number of units to embed.
    """
    gpus, why = gpus_for(settings.model.device), ""
    if settings.processes or not gpus:
        count = max(1, min(settings.processes or cores() // _CORES_EACH, pending))
        places = [gpus[i % len(gpus)] if gpus else None for i in range(count)]
    else:
        wanted = max(1, min(MOST_A_GPU, cores() // (len(gpus) * _CORES_A_GPU)))
        most = [wanted] * len(gpus)
        if wanted > 1 and pending > len(gpus):
            need = process_bytes(checkpoint.architecture, settings.model.precision, settings.batch_size)
            free = free_bytes(gpus)
            most = [max(1, min(wanted, int(_ROOM * (known or 0)) // need)) for known in free]
            if None in free:
                why = ", since the free memory of a GPU is not known"
            elif sum(most) < wanted * len(gpus):
                why = ", as many as the free memory of the GPUs has room for"
        dealt = [gpu for turn in range(wanted) for gpu, number in zip(gpus, most, strict=True) if turn < number]
        places = list(dealt[: max(1, pending)])
        why = why if len(places) == sum(most) else ""
    share = max(1, cores() // len(places))
    feeders = _feeders(settings, share if gpus else 0, pending)
    return Places(tuple(places), feeders, _line(places, gpus, share, feeders, why) if pending else "")


def _feeders(settings: Settings, cores_with_gpu: int, pending: int) -> int:
    """Return the number of feeders of a process. There are never more than units, and a single unit needs none."""
    usual = cores_with_gpu if cores_with_gpu > 1 else 0  # on a single core they could only take turns
    return min(usual if settings.feeders is None else settings.feeders, pending) if pending > 1 else 0


def _line(places: Sequence[str | None], gpus: Sequence[str], share: int, feeders: int, why: str) -> str:
    if len(places) == 1 and not gpus and not feeders:
        return ""
    on = f" on {counted(len(set(places)), 'GPU')}" if gpus else ""
    has = counted(share, "core") + (f" and {counted(feeders, 'feeder')}" if feeders else "")
    each = " each" if len(places) > 1 else ""
    return f"{counted(len(places), 'process', 'processes')}{on}, {has}{each}{why}"


def process_bytes(architecture: Architecture, precision: str, batch_size: int) -> int:
    """Estimate the memory that a process takes of a GPU, in bytes.

    Args:
        architecture: the model's sizes.
        precision: `fp32`, `bf16`, `fp16` or `auto`, which on a GPU is one of the last two.
        batch_size: pictures in a batch; 0 means as many as is usual on a GPU.
    """
    a, batch = architecture, batch_size or BATCH_SIZES["cuda"]
    values = _transformer(a.context_length, a.text_width, a.text_mlp_width)
    if a.patch_size is None:
        values = max(values, int(_STEMS * a.vision_width * (a.image_side // 2) ** 2))
    else:
        places = (a.image_side // a.patch_size) ** 2 + 1
        values = max(values, _transformer(places, a.vision_width, a.vision_mlp_width))
    weights = parameters(a) * _WEIGHT_BYTES[precision]
    return _CONTEXT_BYTES + weights + _BATCHES * batch * values * _VALUE_BYTES[precision]


def _transformer(places: int, width: int, mlp: int | None) -> int:
    """Return the most values that one sample's pass through a transformer holds at once."""
    return places * max(_ATTENTION * width, _BESIDE_MLP * width + (mlp or 4 * width))
