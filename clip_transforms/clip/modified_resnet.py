"""The ResNet tower: pixels → features.

CLIP's ResNet differs from the usual one in three ways: it has a stem of three convolutions, it pools by averaging
before every strided convolution (Zhang 2019), and it ends in attention instead of pooling.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.transformer import attend_once

EXPANSION = 4  # a bottleneck's output is four times as wide as its inside


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm without its counter of batches, which has no effect and may be absent from a checkpoint."""
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; an average pool after the 3×3 stands in for a stride."""

    def __init__(self, inputs: int, planes: int, stride: int):
        """Build a block from `inputs` channels to 4 · `planes` channels."""
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = _batch_norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = _batch_norm(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = _batch_norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            # These are the published names; "-1" is the pool, which has no parameters.
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                        ("1", _batch_norm(outputs)),
                    ]
                )
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs, h, w] → [n, 4 · planes, h / stride, w / stride]."""
        shortcut = self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(self.avgpool(x)))
        return F.relu_(x.add_(shortcut))


class AttentionPool2d(nn.Module):
    """Attention with the mean over all places as its only query."""

    def __init__(self, grid: int, width: int, heads: int, embed_dim: int):
        """Build a pool from `grid` × `grid` places with `width` channels to `embed_dim` channels."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width, grid, grid] → [n, d]."""
        x = x.flatten(2).transpose(1, 2)  # [n, grid², width]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        k, v = self.k_proj, self.v_proj
        return self.c_proj(attend_once(self.q_proj(x[:, 0]), x, k.weight, v.weight, v.bias, self.heads))


class ModifiedResNet(nn.Module):
    """A stem, four stages of bottlenecks, and an attention pool."""

    def __init__(self, architecture: Architecture):
        """Build the tower with the sizes of `architecture` and the published parameter names."""
        super().__init__()
        width = architecture.vision_width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = _batch_norm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = _batch_norm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = _batch_norm(width)
        self.avgpool = nn.AvgPool2d(2)
        inputs = width
        assert isinstance(architecture.vision_layers, tuple), "a Vision Transformer has one depth"
        for stage, blocks in enumerate(architecture.vision_layers):
            planes = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential(
                *(Bottleneck(inputs if i == 0 else planes * EXPANSION, planes, s) for i, s in enumerate(strides))
            )
            self.add_module(f"layer{stage + 1}", layer)
            inputs = planes * EXPANSION
        grid = architecture.image_side // 32
        self.attnpool = AttentionPool2d(grid, inputs, architecture.vision_heads, architecture.embed_dim)

    def forward(self, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Compute features.

        Args:
            pixels: uint8 [n, 3, r, r].
            mean: the mean of each channel, for values in [0, 1].
            std: the standard deviation of each channel, for values in [0, 1].
        Returns:
            Features [n, d].
        """
        x = self._normalised(pixels, mean, std)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu_(self.bn3(self.conv3(x))))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.attnpool(x)

    def _normalised(self, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Normalise pixels. Weights cannot absorb this step: the first convolution pads with zeros, the mean colour."""
        m, s = (255 * torch.tensor(x, device=pixels.device)[:, None, None] for x in (mean, std))
        x = pixels.to(torch.float32, memory_format=torch.channels_last).sub_(m).div_(s)
        return x.to(self.conv1.weight.dtype)
