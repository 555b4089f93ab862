"""The Vision Transformer tower: pixels → features (Dosovitskiy et al. 2021, with an extra norm before the blocks)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.transformer import Transformer

_MIDDLE = 128  # the middle of a pixel's range


class VisionTransformer(nn.Module):
    """A transformer over patches and a class token, whose output at the class token is projected to d."""

    def __init__(self, architecture: Architecture, activation: str):
        """Build the tower with the sizes of `architecture` and the published parameter names."""
        super().__init__()
        width, patch, layers = architecture.vision_width, architecture.patch_size, architecture.vision_layers
        assert patch is not None and isinstance(layers, int), "a ResNet has no patches"
        grid = architecture.image_side // patch
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, layers, architecture.vision_heads, activation, architecture.vision_mlp_width
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Compute features.

        Args:
            pixels: uint8 [n, 3, r, r].
            mean: the mean of each channel, for values in [0, 1].
            std: the standard deviation of each channel, for values in [0, 1].
        Returns:
            Features [n, d].
        """
        weight, bias = self._patch_embedding(mean, std)
        x = F.linear(self._patches(pixels).to(weight.dtype).sub_(_MIDDLE), weight, bias)
        n, _, width = x.shape
        x = torch.cat([self.class_embedding.expand(n, 1, width), x], dim=1)  # [n, 1 + grid², width]
        x = self.ln_pre(x + self.positional_embedding)
        first = torch.zeros(n, dtype=torch.int64, device=x.device)  # the class token's place
        return self.ln_post(self.transformer(x, first)) @ self.proj

    def _patch_embedding(self, mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the convolution as a matrix [width, 3 · patch²] and a bias [width], for pixels minus 128.

        Both include the normalisation: w · (p / 255 - mean) / std = w / (255 std) · (p - 128) + w · (128 / 255 - mean)
        / std. Whole numbers from -128 to 127 are exact in every precision.
        """
        weight = self.conv1.weight.float()  # [width, 3, patch, patch]
        m, s = (torch.tensor(x, device=weight.device)[:, None, None] for x in (mean, std))
        bias = (weight * ((_MIDDLE / 255 - m) / s)).sum(dim=(1, 2, 3))
        kind = self.conv1.weight.dtype
        return (weight / (255 * s)).flatten(1).to(kind), bias.to(kind)

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, r, r] → [n, grid², 3 · patch²], each patch in the order of a kernel's weights."""
        n, _, side, _ = x.shape
        patch = self.conv1.kernel_size[0]
        grid = side // patch
        x = x.view(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(n, grid * grid, 3 * patch * patch)
