"""CLIP embeddings, scores and zero-shot labels of image–caption shards, as Beam transforms and plain functions.

In data-flow order; imported lazily (PEP 562), so that importing costs nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

_HOMES = {
    "ClipSpec": "clip.model_spec",
    "Taxonomy": "clip.taxonomy",
    "ReaderOptions": "shards.unit",
    "EmbedShards": "embed_shards",
    "embed_shards": "embed_shards",
    "PartResult": "run.summary",
    "LabelEmbeddings": "label_embeddings",
    "label_embeddings": "label_embeddings",
    "Dataset": "parts.dataset",
    "FilterEmbeddings": "filter_embeddings",
    "filter_embeddings": "filter_embeddings",
    "ExportEmbeddings": "export_embeddings",
    "export_embeddings": "export_embeddings",
    "DeduplicateEmbeddings": "deduplicate_embeddings",
    "deduplicate_embeddings": "deduplicate_embeddings",
    "EvaluateEmbeddings": "evaluate_embeddings",
    "evaluate_embeddings": "evaluate_embeddings",
    "SearchEmbeddings": "search_embeddings",
    "search_embeddings": "search_embeddings",
    "ReportEmbeddings": "report_embeddings",
    "report_embeddings": "report_embeddings",
    "IndexEmbeddings": "index_embeddings",
    "index_embeddings": "index_embeddings",
    "ReadEmbeddings": "read_embeddings",
    "read_embeddings": "read_embeddings",
    "ClipModelHandler": "clip_model_handler",
}
__all__ = [*_HOMES, "clip"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use."""
    if name == "clip":
        return importlib.import_module("clip_transforms.clip")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Package(types.ModuleType):
    """The package itself, which prefers functions to modules: `clip_transforms.embed_shards` is always the function.

    A verb's module and its plain function have the same name, and the import system sets every imported module as an
    attribute of its package. Without this class the name would mean the module after the first import.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOMES.get(name) == name and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
