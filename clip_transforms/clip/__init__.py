"""CLIP itself, usable alone: no Beam, no Arrow. Its names are imported lazily, so the launcher needs no torch."""

from __future__ import annotations

import importlib

_HOMES = {
    "ClipSpec": "model_spec",
    "load": "checkpoints",
    "ClipModel": "model",
    "decode_image": "preprocess",
    "ImageError": "decoders",
    "Tokenizer": "tokenizer",
    "Taxonomy": "taxonomy",
    "zero_shot_classifier": "zero_shot",
    "PUBLISHED": "architectures",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a public name from its module when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
