"""The sizes of a CLIP from the shapes of its tensors, and the reverse, with OpenAI's tensor names. Pure Python."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

from clip_transforms.clip.architectures import HEAD_WIDTH, Architecture


def architecture_of(
    shapes: Mapping[str, tuple[int, ...]], vision_head_width: int | None = None, text_head_width: int | None = None
) -> Architecture:
    """Derive the sizes of a CLIP from the shapes of its tensors, then check every shape against them.

    Args:
        shapes: OpenAI's tensor name → shape.
        vision_head_width: the width of a vision attention head, if a configuration states it; None means the published
            64.
        text_head_width: the same for the text tower.
    Returns:
        The architecture; nothing in it is taken from PUBLISHED.
    Raises:
        ValueError: if a tensor is missing, superfluous or has the wrong shape; the message shows both shapes.
    """
    if empty := next((name for name, found in shapes.items() if 0 in found), None):
        raise ValueError(f"{empty} has shape {list(shapes[empty])}, so it holds no numbers")

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != rank:
            what = "is missing" if found is None else f"has shape {list(found)} instead of {rank} dimensions"
            raise ValueError(f"this is not a CLIP that this program knows: {name} {what}, among {len(shapes)} tensors")
        return tuple(found)

    def depth(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        layers = 1 + max((int(m[1]) for m in map(pattern.match, shapes) if m), default=-1)
        if layers > len(shapes):
            raise ValueError(f"its {prefix} names imply {layers:,} layers, but it has only {len(shapes):,} tensors")
        return layers

    def mlp_width(prefix: str, width: int) -> int | None:
        found = shape(f"{prefix}.0.mlp.c_fc.weight", 2)[0]
        return None if found == 4 * width else found

    text_width = shape("ln_final.weight", 1)[0]
    with_text = functools.partial(
        Architecture,
        embed_dim=shape("text_projection", 2)[1],
        text_width=text_width,
        text_layers=depth("transformer.resblocks."),
        context_length=shape("positional_embedding", 2)[0],
        vocab_size=shape("token_embedding.weight", 2)[0],
        text_head_width=text_head_width or HEAD_WIDTH,
        text_mlp_width=mlp_width("transformer.resblocks", text_width),
    )
    if "visual.proj" in shapes:
        width, _, patch, _ = shape("visual.conv1.weight", 4)
        grid = round((shape("visual.positional_embedding", 2)[0] - 1) ** 0.5)
        architecture = with_text(
            image_side=patch * grid,
            vision_layers=depth("visual.transformer.resblocks."),
            vision_width=width,
            patch_size=patch,
            vision_head_width=vision_head_width or HEAD_WIDTH,
            vision_mlp_width=mlp_width("visual.transformer.resblocks", width),
        )
    else:
        grid = round((shape("visual.attnpool.positional_embedding", 2)[0] - 1) ** 0.5)
        architecture = with_text(
            image_side=32 * grid,  # the ResNet halves the side five times
            vision_layers=(
                depth("visual.layer1."),
                depth("visual.layer2."),
                depth("visual.layer3."),
                depth("visual.layer4."),
            ),
            vision_width=shape("visual.layer1.0.conv1.weight", 4)[0],
            patch_size=None,
            vision_head_width=vision_head_width or HEAD_WIDTH,
        )
    if architecture.vocab_size != Architecture.vocab_size:
        raise ValueError(
            f"its vocabulary has {architecture.vocab_size:,} tokens, but CLIP's tokenizer has "
            f"{Architecture.vocab_size:,}, so it needs a different tokenizer"
        )
    if not architecture.image_side or architecture.context_length < 2:
        raise ValueError(
            f"its positional embeddings are for pictures of side {architecture.image_side} and captions of "
            f"{architecture.context_length} tokens, which is too small for any"
        )
    _check_heads(architecture)
    _check_shapes(shapes, architecture)
    return architecture


# Widths of open_clip's larger Vision Transformers. Their heads are not 64 wide, and the tensors alone do not show it.
_OTHER_HEADS = (1280, 1408, 1664)


def _check_heads(architecture: Architecture) -> None:
    if architecture.vision_width in _OTHER_HEADS and architecture.vision_head_width == HEAD_WIDTH:
        raise ValueError(
            f"its vision tower is {architecture.vision_width} wide, and models of that width have heads that are not "
            "64 wide, which no tensor shows; give the folder that holds the weights and their configuration"
        )
    for tower, width, heads in (
        ("vision", architecture.vision_width, architecture.vision_heads),
        ("text", architecture.text_width, architecture.text_heads),
    ):
        if heads < 1 or width % heads:
            raise ValueError(
                f"its {tower} tower is {width} wide, which its {heads} attention heads do not divide evenly"
            )


def _check_shapes(found: Mapping[str, tuple[int, ...]], architecture: Architecture) -> None:
    expected = tensor_shapes(architecture)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{name} is missing, but every CLIP of these sizes ({architecture.describe()}) has it")
        if tuple(found[name]) != shape:
            raise ValueError(
                f"{name} has shape {list(found[name])}, but with the other tensors ({architecture.describe()}) it must "
                f"be {list(shape)}"
            )
    if superfluous := sorted(set(found) - set(expected)):
        raise ValueError(
            f"it has {len(superfluous)} tensors that no CLIP of these sizes has, among them {superfluous[0]}, so it is "
            "a different model"
        )


def parameters(architecture: Architecture) -> int:
    """Return the number of weights; the statistics of batch norms do not count."""
    return sum(math.prod(shape) for name, shape in tensor_shapes(architecture).items() if ".running_" not in name)


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a CLIP, by OpenAI's names."""
    a = architecture
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection": (a.text_width, a.embed_dim),
        "positional_embedding": (a.context_length, a.text_width),
        "token_embedding.weight": (a.vocab_size, a.text_width),
        **_norm("ln_final", a.text_width),
        **_blocks("transformer.resblocks", a.text_layers, a.text_width, a.text_mlp_width),
    }
    if a.patch_size is not None and isinstance(a.vision_layers, int):
        places = (a.image_side // a.patch_size) ** 2 + 1
        return shapes | {
            "visual.class_embedding": (a.vision_width,),
            "visual.positional_embedding": (places, a.vision_width),
            "visual.proj": (a.vision_width, a.embed_dim),
            "visual.conv1.weight": (a.vision_width, 3, a.patch_size, a.patch_size),
            **_norm("visual.ln_pre", a.vision_width),
            **_norm("visual.ln_post", a.vision_width),
            **_blocks("visual.transformer.resblocks", a.vision_layers, a.vision_width, a.vision_mlp_width),
        }
    return shapes | _resnet_shapes(a)


def _resnet_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    assert isinstance(a.vision_layers, tuple)
    w = a.vision_width
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        shapes[f"visual.{name}.weight"] = (outputs, inputs, side, side)
        shapes.update(_norm(f"visual.{norm}", outputs))
        shapes.update({f"visual.{norm}.running_{statistic}": (outputs,) for statistic in ("mean", "var")})

    for i, outputs, inputs in ((1, w // 2, 3), (2, w // 2, w // 2), (3, w, w // 2)):
        convolution(f"conv{i}", f"bn{i}", outputs, inputs, 3)
    inputs = w
    for stage, blocks in enumerate(a.vision_layers):
        planes = w * 2**stage
        for block in range(blocks):
            place = f"layer{stage + 1}.{block}"
            convolution(f"{place}.conv1", f"{place}.bn1", planes, inputs, 1)
            convolution(f"{place}.conv2", f"{place}.bn2", planes, planes, 3)
            convolution(f"{place}.conv3", f"{place}.bn3", 4 * planes, planes, 1)
            if block == 0:
                convolution(f"{place}.downsample.0", f"{place}.downsample.1", 4 * planes, inputs, 1)
            inputs = 4 * planes
    shapes["visual.attnpool.positional_embedding"] = ((a.image_side // 32) ** 2 + 1, inputs)
    for name, outputs in (("q", inputs), ("k", inputs), ("v", inputs), ("c", a.embed_dim)):
        shapes[f"visual.attnpool.{name}_proj.weight"] = (outputs, inputs)
        shapes[f"visual.attnpool.{name}_proj.bias"] = (outputs,)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _blocks(prefix: str, layers: int, width: int, mlp: int | None) -> dict[str, tuple[int, ...]]:
    mlp = mlp or 4 * width
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        shapes |= {
            f"{prefix}.{i}.attn.in_proj_weight": (3 * width, width),
            f"{prefix}.{i}.attn.in_proj_bias": (3 * width,),
            f"{prefix}.{i}.attn.out_proj.weight": (width, width),
            f"{prefix}.{i}.attn.out_proj.bias": (width,),
            f"{prefix}.{i}.mlp.c_fc.weight": (mlp, width),
            f"{prefix}.{i}.mlp.c_fc.bias": (mlp,),
            f"{prefix}.{i}.mlp.c_proj.weight": (width, mlp),
            f"{prefix}.{i}.mlp.c_proj.bias": (width,),
            **_norm(f"{prefix}.{i}.ln_1", width),
            **_norm(f"{prefix}.{i}.ln_2", width),
        }
    return shapes
