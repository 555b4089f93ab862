"""The Vision Transformer tower: pixels → features (Dosovitskiy et al. 2021, with CLIP's extra norm in front)."""

from __future__ import annotations

import torch
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
        x = self.conv1(x).flatten(2).transpose(1, 2)  # [n, grid², width]
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)  # [n, 1 + grid², width]
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj
