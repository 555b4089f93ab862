"""Recognise, by the names of its tensors, which layout a file uses, or that its model is no CLIP. Pure Python."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

OPENAI, CUSTOM_TEXT, HUGGING_FACE = "OpenAI", "open_clip, text tower apart", "Hugging Face CLIPModel"

# Tensors that are no weights: scalars in OpenAI's archives, masks that old releases saved, counters from training.
_NO_WEIGHTS = re.compile(
    r"(input_resolution|context_length|vocab_size)$|(.*\.)?(attn_mask|num_batches_tracked|position_ids)$"
)
# Tensor names that belong to models of other kinds.
_OTHERS = (
    (r"(visual\.)?trunk\.|visual\.trunk\.", "its image tower is a timm trunk"),
    (r"text_decoder\.|visual\.attn_pool\.", "it is a CoCa"),
    (r"logit_bias$|vision_model\.head\.|text_model\.head\.", "it is a SigLIP, whose loss and pooling differ"),
    (r"text\.transformer\.(embeddings|encoder|shared|layer)\b", "its text tower is another library's transformer"),
    (r".*\.ls_[12]\.gamma$", "its blocks have layer scales"),
    (r"(text_model\.|bert\.|roberta\.).*word_embeddings\.", "its text tower is a BERT, with another tokenizer"),
)


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """The origin of one of our tensors: tensors of the file, joined along their first axis, perhaps transposed."""

    names: tuple[str, ...]
    transposed: bool = False


def recognise(names: Iterable[str], key: str | None = None) -> tuple[str, dict[str, TensorSource]]:
    """Recognise a file's layout by the names of its tensors.

    Args:
        names: the names of all the tensors; prefixes that training adds (`state_dict`, `module.`) are ignored.
        key: the start of the names of the weights, if the file holds several models or a larger one; `.` means the
            model whose names have no such start.
    Returns:
        The layout's name, and a mapping from OpenAI's tensor names to their sources in the file.
    Raises:
        ValueError: if the tensors belong to a known model of another kind, or if `key` must choose among models or name
            a part of a larger one; the message names the kind, or the keys.
    """
    found = _chosen(list(names), key)
    for pattern, what in _OTHERS:
        if name := next((name for name in found if re.match(pattern, name)), None):
            raise ValueError(f"{what} ({name}), which this program does not support; give a CLIP of the published kind")
    if any(name.startswith("vision_model.") for name in found):
        return HUGGING_FACE, _from_hugging_face(found)
    if "text.token_embedding.weight" in found:
        return CUSTOM_TEXT, {name.removeprefix("text."): TensorSource((full,)) for name, full in found.items()}
    return OPENAI, {name: TensorSource((full,)) for name, full in found.items()}


def shape_of(source: TensorSource, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of the tensor that `source` makes."""
    first, *rest = (shapes[name] for name in source.names)
    if rest:
        first = (first[0] + sum(shape[0] for shape in rest), *first[1:])
    return tuple(reversed(first)) if source.transposed else first


# The tensor at the end of the text tower, in each layout. The group is the start of all names of the model.
_TEXT_END = re.compile(r"((?:.*?\.)??)(?:text\.ln_final|text_model\.final_layer_norm|ln_final)\.weight")

_IMAGE_TOWER = re.compile(r"(?<![^.])(?:visual|vision_model)\.")
_SHOWN = 4  # keys in a message


def _roots(names: Iterable[str]) -> list[str]:
    """Return the start of the names of each CLIP among the tensors: empty, or ending in a dot."""
    names = list(names)
    with_text = {match[1] for match in map(_TEXT_END.fullmatch, names) if match}
    return sorted(with_text & {name[: match.start()] for name in names for match in _IMAGE_TOWER.finditer(name)})


def _chosen(names: list[str], key: str | None) -> dict[str, str]:
    """Map the names of one model, without what stands before them, to names in the file; weights only.

    Raises:
        ValueError: if the key is wrong, or there is none and one is needed; the message names the keys.
    """
    start = f"{key}." if key and key != "." else ""
    inside = {name.removeprefix(start): name for name in names if name.startswith(start)}
    if key == ".":
        others = tuple(filter(None, _roots(names)))
        inside = {name: name for name in names if not name.startswith(others)}
    if key and not inside:
        cure = f"give {_flags('', roots)}" if (roots := _roots(names)) else "omit the flag"
        raise ValueError(f"--checkpoint_key is {key}, but no tensor's name begins with {start}; {cure}")
    roots, found = _roots(inside), _unwrapped(inside)
    if len(roots) > 1:
        raise ValueError(f"it holds {len(roots):,} models; choose one with {_flags(start, roots)}")
    if roots and "" not in _roots(found):
        raise ValueError(f"the names of its weights begin with {start}{roots[0]}; give {_flags(start, roots)}")
    return found


def _flags(start: str, roots: list[str]) -> str:
    flags = [f"--checkpoint_key {(start + root).removesuffix('.') or '.'}" for root in roots[:_SHOWN]]
    return " or ".join([*flags, *([f"{len(roots) - _SHOWN:,} more"] if len(roots) > _SHOWN else [])])


def _unwrapped(found: dict[str, str]) -> dict[str, str]:
    """Remove training's prefixes from names that map to names in the file; weights only."""
    while prefix := _wrapper(found):
        found = {name.removeprefix(prefix): full for name, full in found.items() if name.startswith(prefix)}
    return {name: full for name, full in found.items() if not _NO_WEIGHTS.match(name)}


def _wrapper(names: Iterable[str]) -> str | None:
    """Return a prefix to remove from the names: a section of a training checkpoint, or a module's wrapper."""
    names = list(names)
    for part in ("state_dict.", "model_state_dict.", "model."):
        if any(name.startswith(part) for name in names):
            return part
    return next((p for p in ("module.", "_orig_mod.") if names and all(name.startswith(p) for name in names)), None)


# Hugging Face's name → OpenAI's name of the same tensor.
_SAME = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # misspelt in the library
    "vision_model.post_layernorm": "visual.ln_post",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _from_hugging_face(found: Mapping[str, str]) -> dict[str, TensorSource]:
    sources: dict[str, TensorSource] = {}
    for name, full in found.items():
        stem, _, last = name.rpartition(".")
        if name in _SAME or stem in _SAME:
            sources[_SAME.get(name) or f"{_SAME[stem]}.{last}"] = TensorSource((full,))
        elif name in _TRANSPOSED:
            sources[_TRANSPOSED[name]] = TensorSource((full,), transposed=True)
        elif match := _BLOCK.fullmatch(name):
            tower, number, part, kind = match.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            if part == "self_attn.q_proj":
                parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
                if all(p in found for p in parts):
                    sources[f"{block}.attn.in_proj_{kind}"] = TensorSource(tuple(found[p] for p in parts))
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                sources[f"{block}.{_IN_BLOCK.get(part, part)}.{kind}"] = TensorSource((full,))
        else:
            sources[name] = TensorSource((full,))  # superfluous; the check of shapes will say so
    return sources
