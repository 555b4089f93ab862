"""Fold scalings and batch norms into the weights beside them: the same model with fewer operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from clip_transforms.clip.modified_resnet import Bottleneck, ModifiedResNet
from clip_transforms.clip.transformer import QuickGELU, ResidualAttentionBlock

Read = Callable[[str], torch.Tensor]  # a tensor's name → a float32 copy of the tensor


def fold(model: nn.Module) -> dict[str, Callable[[Read], torch.Tensor]]:
    """Replace modules whose work can be folded into weights; the model computes the same features faster.

    QuickGELU, x · sigmoid(1.702 x) = silu(1.702 x) / 1.702, becomes SiLU between scaled weights. Batch norms become
    weights and biases of the convolutions before them.

    Args:
        model: a model in the published form, changed in place. Its weights may be on the meta device.
    Returns:
        Tensor name → a function that makes the tensor from the published ones, for each tensor of the changed model
        that differs from the published tensor of the same name.
    """
    made: dict[str, Callable[[Read], torch.Tensor]] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, ResidualAttentionBlock) and isinstance(module.mlp.gelu, QuickGELU):
            module.mlp.gelu = nn.SiLU(inplace=True)
            made |= _scaled(f"{name}.mlp.c_fc.weight", QuickGELU.FACTOR)
            made |= _scaled(f"{name}.mlp.c_fc.bias", QuickGELU.FACTOR)
            made |= _scaled(f"{name}.mlp.c_proj.weight", 1 / QuickGELU.FACTOR)
        if isinstance(module, (ModifiedResNet, Bottleneck)):
            for number in (1, 2, 3):
                made |= _without_norm(module, f"conv{number}", f"bn{number}", name)
        if isinstance(module, Bottleneck) and isinstance(module.downsample, nn.Sequential):
            made |= _without_norm(module.downsample, "0", "1", f"{name}.downsample")
    return made


def _scaled(name: str, factor: float) -> dict[str, Callable[[Read], torch.Tensor]]:
    return {name: lambda read: read(name).mul_(factor)}


def _without_norm(parent: nn.Module, conv: str, norm: str, place: str) -> dict[str, Callable[[Read], torch.Tensor]]:
    """Give a convolution a bias, and remove the batch norm behind it."""
    convolution, replaced = parent.get_submodule(conv), parent.get_submodule(norm)
    assert isinstance(convolution, nn.Conv2d) and isinstance(replaced, nn.BatchNorm2d)
    eps = replaced.eps
    convolution.bias = nn.Parameter(torch.empty(convolution.out_channels, device=convolution.weight.device))
    setattr(parent, norm, nn.Identity())

    def factor(read: Read) -> torch.Tensor:
        # In the same order as in the batch norm itself, so that the rounding is the same.
        return 1 / (read(f"{place}.{norm}.running_var") + eps).sqrt() * read(f"{place}.{norm}.weight")

    def weight(read: Read) -> torch.Tensor:
        folded = read(f"{place}.{conv}.weight").mul_(factor(read)[:, None, None, None])
        return folded.contiguous(memory_format=torch.channels_last)

    def bias(read: Read) -> torch.Tensor:
        return read(f"{place}.{norm}.bias") - read(f"{place}.{norm}.running_mean") * factor(read)

    return {f"{place}.{conv}.weight": weight, f"{place}.{conv}.bias": bias}
