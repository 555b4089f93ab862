"""Describe a checkpoint in words."""

from __future__ import annotations

from clip_transforms.clip.architectures import PUBLISHED
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.tensor_shapes import parameters


def describe(checkpoint: Checkpoint) -> tuple[str, list[tuple[str, str]]]:
    """Return what a recognised checkpoint is, and (name, value) of what is known of it."""
    named = next((name for name, p in PUBLISHED.items() if p.sha256 == checkpoint.sha256), None)
    alike = next((name for name, p in PUBLISHED.items() if p.architecture == checkpoint.architecture), None)
    what = (
        f"OpenAI's {named}"
        if named
        else f"a CLIP with the sizes of {alike}"
        if alike
        else "a CLIP with sizes of its own"
    )
    unknown = "the checkpoint does not say; give --activation when you use it"
    return f"{what}, in the layout of {checkpoint.layout}", [
        *(("file", uri) for uri in checkpoint.files),
        ("SHA-256", checkpoint.sha256),
        ("sizes", checkpoint.architecture.describe()),
        ("parameters", f"{parameters(checkpoint.architecture) / 1e6:.1f} M"),
        ("activation", checkpoint.activation or unknown),
        ("recognised by", checkpoint.recognised_by),
        ("preprocessing", checkpoint.preprocessing.describe()),
    ]
