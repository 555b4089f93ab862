"""The Vision Transformer tower: pixels → features (Dosovitskiy et al. 2021, with CLIP's extra norm in front)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.transformer import Transformer


class VisionTransformer(nn.Module):
    """Patches and a class token through a transformer; the class token's place is projected to d."""

    def __init__(self, architecture: Architecture, activation: str):
        """Sizes from `architecture`; parameters in the published names."""
        super().__init__()
        width, patch = architecture.vision_width, architecture.patch_size
        grid = architecture.image_side // patch
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, architecture.vision_layers, architecture.vision_heads, activation, architecture.vision_mlp_width
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [n, 3, r, r] → features [n, d]."""
        x = F.linear(self._patches(x), self.conv1.weight.flatten(1))  # a stride as wide as the kernel: a product
        n, _, width = x.shape
        x = torch.cat([self.class_embedding.expand(n, 1, width), x], dim=1)  # [n, 1 + grid², width]
        x = self.ln_pre(x + self.positional_embedding)
        first = torch.zeros(n, dtype=torch.int64, device=x.device)  # the class token's place
        return self.ln_post(self.transformer(x, first)) @ self.proj

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, r, r] → [n, grid², 3 · patch²], every patch in the order of a kernel's weights."""
        n, _, side, _ = x.shape
        patch = self.conv1.kernel_size[0]
        grid = side // patch
        x = x.view(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(n, grid * grid, 3 * patch * patch)
