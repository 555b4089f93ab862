"""OpenAI's published code, and models built with it, for comparison in tests and benchmarks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import types
from typing import Any

from clip_transforms.clip.architectures import Architecture


def published_module(name: str) -> types.ModuleType:
    """Load `model` or `simple_tokenizer` of openai-clip by file path, since the package itself needs torchvision."""
    path = next(f.locate() for f in importlib.metadata.files("openai-clip") or [] if f.name == f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"published_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(a: Architecture) -> Any:
    """Build a model of the published class with random weights."""
    model = published_module("model").CLIP(
        embed_dim=a.embed_dim,
        image_resolution=a.image_side,
        vision_layers=a.vision_layers,
        vision_width=a.vision_width,
        vision_patch_size=a.patch_size,
        context_length=a.context_length,
        vocab_size=a.vocab_size,
        transformer_width=a.text_width,
        transformer_heads=a.text_heads,
        transformer_layers=a.text_layers,
    )
    return model.eval()
