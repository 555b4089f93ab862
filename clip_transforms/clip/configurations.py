"""Read the configuration that other libraries write beside their weights. It holds facts that the tensors do not show.

Pure Python.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.preprocess import PIXEL_MEAN, PIXEL_STD, Preprocessing

OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
_SENTENCE_TRANSFORMERS = "modules.json"
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.safetensors",
)
_INDEX = ".index.json"
_HUGGING_FACE_WEIGHTS = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX))
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}  # Hugging Face's name → ours
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# open_clip settings that may have any value: the tensors show them, or they matter only in training, or only together
# with settings that are refused.
_TOLD = {
    *(
        "layers",
        "width",
        "heads",
        "head_width",
        "mlp_ratio",
        "patch_size",
        "image_size",
        "context_length",
        "vocab_size",
    ),
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "image_mean", "image_std"),
}
# Other settings must be unset, or have a value that a CLIP of the published kind has.
_PLAIN = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a folder's configuration says about the weights in it.

    Attributes:
        origin: the name of the configuration file.
        weights: the names of the weight files in the folder.
        activation: `quick_gelu` or `gelu`.
        vision_head_width, text_head_width: the width of an attention head; None for the published 64.
        preprocessing: the preprocessing of images and captions.
        sizes: attribute of Architecture → its value in the configuration, or None if the configuration omits it.
    """

    origin: str
    weights: tuple[str, ...]
    activation: str
    vision_head_width: int | None
    text_head_width: int | None
    preprocessing: Preprocessing
    sizes: Mapping[str, Any]


def read_configuration(folder: str) -> Configuration:
    """Read a folder's configuration, written by open_clip, Hugging Face or sentence-transformers.

    Args:
        folder: the folder's URI.
    Raises:
        ValueError: if there is no configuration, it is malformed, or its model is not a CLIP of the published kind.
    """
    names = set(storage.names_in(folder))
    open_clip = [name for name in _OPEN_CLIP_WEIGHTS if name in names]
    hugging_face = [name for name in _HUGGING_FACE_WEIGHTS if name in names]
    try:
        if OPEN_CLIP in names and (open_clip or not hugging_face):
            if not open_clip:
                raise ValueError(f"it has {OPEN_CLIP}, but no weights ({' or '.join(_OPEN_CLIP_WEIGHTS)})")
            return _open_clip(_read(folder, OPEN_CLIP), open_clip[:1])
        if HUGGING_FACE in names and hugging_face:
            processor = next((n for n in ("preprocessor_config.json", "processor_config.json") if n in names), None)
            weights = hugging_face[:1]
            if weights[0].endswith(_INDEX):
                index, weights = weights[0], sorted(set(_read(folder, weights[0])["weight_map"].values()))
                if missing := [name for name in weights if name not in names]:
                    raise ValueError(f"{index} in it names {missing[0]!r}, which is not beside it; download it too")
            return _hugging_face(_read(folder, HUGGING_FACE), processor and _read(folder, processor), weights)
        if _SENTENCE_TRANSFORMERS in names:
            inner = _clip_module(_read(folder, _SENTENCE_TRANSFORMERS, list))
            try:
                found = read_configuration(storage.join(folder, inner))
            except ValueError as error:
                raise ValueError(f"{inner} in it: {error}") from error
            return dataclasses.replace(found, weights=tuple(f"{inner}/{name}" for name in found.weights))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"its configuration is malformed ({error!r})") from error
    raise ValueError(
        f"this folder holds no model that this program knows: it has neither {OPEN_CLIP} nor {HUGGING_FACE} beside "
        "weights; give such a folder, or a .pt or .safetensors file"
    )


def _clip_module(modules: list[Mapping[str, Any]]) -> str:
    """Return the folder of the CLIP in a list of sentence-transformers' modules."""
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds[:1] != ["CLIPModel"] or set(kinds[1:]) - {"Normalize"}:
        raise ValueError(
            f"its {_SENTENCE_TRANSFORMERS} lists {', '.join(kinds) or 'nothing'}, but it must list a CLIPModel and no "
            "other layers"
        )
    inner = modules[0]["path"]
    if not isinstance(inner, str) or not re.fullmatch(r"\w[\w.-]*", inner):
        raise ValueError(f"its {_SENTENCE_TRANSFORMERS} names the folder {inner!r}, but it must be one beside it")
    return inner


def _read(folder: str, name: str, kind: type = dict) -> Any:
    try:
        content = json.loads(storage.read_bytes(storage.join(folder, name)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} in it is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{name} in it is not a JSON {'object' if kind is dict else 'list'}")
    return content


def _open_clip(content: Mapping[str, Any], weights: list[str]) -> Configuration:
    model, pixels = content["model_cfg"], content.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    if "multimodal_cfg" in model:
        raise ValueError("its multimodal_cfg says that it is a CoCa, which this program does not support")
    if model.get("init_logit_bias") is not None:
        raise ValueError("its init_logit_bias says that it is a SigLIP, which this program does not support")
    for place, config in (("vision_cfg", vision), ("text_cfg", text)):
        for name, value in config.items():
            if name not in _TOLD and value and value not in _PLAIN.get(name, ()):
                raise ValueError(
                    f"its {place} has {name} {value!r}, so it is not a CLIP of the published kind, and this program "
                    "does not support it"
                )
    head_width, layers = vision.get("head_width", 64), vision.get("layers", 12)
    if not _is_size(head_width):
        raise ValueError(f"its vision_cfg has head_width {head_width!r}, but it must be a whole number above 0")
    resnet = isinstance(layers, list)
    return Configuration(
        OPEN_CLIP,
        tuple(weights),
        "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        head_width,
        _head_width("text_cfg", text.get("width", 512), text.get("heads", 8)),
        sizes={
            "embed_dim": model.get("embed_dim"),
            "vision_layers": tuple(layers) if resnet else layers,
            "vision_width": vision.get("width", 768),
            "patch_size": None if resnet else vision.get("patch_size", 16),
            "vision_mlp_width": None if resnet else int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0)),
            "text_layers": text.get("layers", 12),
            "text_width": text.get("width", 512),
            "text_mlp_width": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
            "vocab_size": text.get("vocab_size", 49408),
        },
        preprocessing=Preprocessing(
            side=_square(pixels.get("size") or vision["image_size"], "image_size"),
            mean=tuple(pixels.get("mean") or vision.get("image_mean") or PIXEL_MEAN),
            std=tuple(pixels.get("std") or vision.get("image_std") or PIXEL_STD),
            resize=pixels.get("resize_mode") or "shortest",
            interpolation=pixels.get("interpolation") or "bicubic",
            fill=pixels.get("fill_color") or 0,
            context_length=text.get("context_length", 77),
        ),
    )


def _hugging_face(content: Mapping[str, Any], processor: Mapping[str, Any] | None, weights: list[str]) -> Configuration:
    kind = content.get("model_type")
    if kind != "clip":
        raise ValueError(f"its {HUGGING_FACE} says that it is a {kind!r} model, but it must be 'clip'")
    text, vision = (_tower(content, tower) for tower in ("text", "vision"))
    # Omitted settings have the library's own defaults, which are those of ViT-B/32.
    activations = {str(config.get("hidden_act", "quick_gelu")) for config in (text, vision)}
    if len(activations) > 1 or not activations <= set(_ACTIVATIONS):
        raise ValueError(f"its hidden_act is {' and '.join(sorted(activations))}, but it must be quick_gelu or gelu")
    for config in (text, vision):
        if config.get("layer_norm_eps", 1e-5) != 1e-5:
            raise ValueError(f"its layer_norm_eps is {config['layer_norm_eps']}, but CLIP's is 1e-05")
    if text.get("eos_token_id", 49407) not in (2, 49407):  # 2 is an old mistake, which the library reads as 49407
        raise ValueError(f"its eos_token_id is {text['eos_token_id']!r}, but CLIP's tokenizer ends a text with 49407")
    side = vision.get("image_size", 224)
    return Configuration(
        HUGGING_FACE,
        tuple(weights),
        _ACTIVATIONS[activations.pop()],
        _head_width("vision_config", vision.get("hidden_size", 768), vision.get("num_attention_heads", 12)),
        _head_width("text_config", text.get("hidden_size", 512), text.get("num_attention_heads", 8)),
        dataclasses.replace(
            _hugging_face_pixels((processor or {}).get("image_processor", processor) or {}, side),
            context_length=text.get("max_position_embeddings", 77),
        ),
        {
            "embed_dim": content.get("projection_dim", 512),
            "vision_layers": vision.get("num_hidden_layers", 12),
            "vision_width": vision.get("hidden_size", 768),
            "vision_mlp_width": vision.get("intermediate_size", 3072),
            "patch_size": vision.get("patch_size", 32),
            "text_layers": text.get("num_hidden_layers", 12),
            "text_width": text.get("hidden_size", 512),
            "text_mlp_width": text.get("intermediate_size", 2048),
            "vocab_size": text.get("vocab_size", 49408),
        },
    )


def _tower(content: Mapping[str, Any], tower: str) -> Mapping[str, Any]:
    """Return a tower's configuration; if an old file has two, the library uses the one whose name ends in `_dict`."""
    old = content.get(f"{tower}_config_dict")
    return (content.get(f"{tower}_config") or {}) if old is None else old


def _head_width(place: str, width: Any, heads: Any) -> int:
    """Return the width of an attention head; the heads must divide the tower's width evenly, as in the library."""
    if not _is_size(width) or not _is_size(heads) or width % heads:
        raise ValueError(
            f"its {place} has {heads!r} attention heads, which do not divide its width of {width!r} evenly"
        )
    return width // heads


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _hugging_face_pixels(processor: Mapping[str, Any], side: int) -> Preprocessing:
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not processor.get(step, True):
            raise ValueError(f"its preprocessor skips a step ({step} is false) that this program always performs")
    if abs(processor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"its preprocessor's rescale_factor is {processor['rescale_factor']}, but it must be 1/255")
    size, crop = processor.get("size", side), _square(processor.get("crop_size", side), "crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    resized = shortest or _square(size, "size")
    if resized != crop:
        raise ValueError(f"its preprocessor resizes to {resized} and crops to {crop}, but the two must be equal")
    if crop != side:
        raise ValueError(f"its preprocessor makes pictures of side {crop}, but its vision_config says {side}")
    resample = processor.get("resample", 3)
    if resample not in _RESAMPLE:
        raise ValueError(f"its preprocessor's resample is {resample}, but it must be one of {sorted(_RESAMPLE)}")
    return Preprocessing(
        side=crop,
        mean=tuple(processor.get("image_mean", PIXEL_MEAN)),
        std=tuple(processor.get("image_std", PIXEL_STD)),
        resize="shortest" if shortest else "squash",
        interpolation=_RESAMPLE[resample],
    )


def _square(size: Any, name: str) -> int:
    """Return the side in pixels, given a number, a list of two numbers, or a mapping with height and width."""
    sides: list[Any] = size if isinstance(size, list) else [size]
    if isinstance(size, Mapping):
        sides = [size.get("height"), size.get("width")]
    if len(set(sides)) != 1 or not _is_size(sides[0]):
        raise ValueError(f"its {name} is {size}, but pictures must be square")
    return sides[0]
