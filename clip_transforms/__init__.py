"""CLIP embeddings, scores and zero-shot labels of image–caption shards, as Beam transforms and plain functions.

In data-flow order; imported lazily (PEP 562), so that importing costs nothing.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "ClipSpec": "clip.model_spec",
    "Taxonomy": "clip.taxonomy",
    "ReaderOptions": "shards.unit",
    "EmbedShards": "embed_shards",
    "PartResult": "run_summary",
    "LabelEmbeddings": "label_embeddings",
    "ReadEmbeddings": "read_embeddings",
}
__all__ = [*_HOMES, "clip"]


def __getattr__(name: str):
    """Import a public name from its module at its first use."""
    if name == "clip":
        return importlib.import_module("clip_transforms.clip")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
