"""The pre-norm transformer that both of CLIP's transformers are made of, in the published parameter names."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's checkpoints were trained with."""

    FACTOR = 1.702

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape → the same shape."""
        return x * torch.sigmoid(self.FACTOR * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for query, key and value."""

    def __init__(self, width: int, heads: int):
        """Parameters in the names of `torch.nn.MultiheadAttention`."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, causal: bool, places: torch.Tensor | None = None) -> torch.Tensor:
        """[n, t, width] → [n, t, width], or [n, 1, width] of the n `places` alone.

        With `causal`, a place sees itself and what stands before it.
        """
        n, t, width = x.shape
        if places is None:
            packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            packed = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
            k, v = packed.view(n, t, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            q = F.linear(_at(x, places), self.in_proj_weight[:width], self.in_proj_bias[:width])
            q = q.view(n, 1, self.heads, width // self.heads).transpose(1, 2)
            seen = torch.arange(t, device=x.device) <= places[:, None] if causal else None  # [n, t]
            x = F.scaled_dot_product_attention(q, k, v, seen if seen is None else seen[:, None, None])
        return self.out_proj(x.transpose(1, 2).reshape(n, x.shape[2], width))


def _at(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[n, t, width] → [n, 1, width]: of each row what stands at its place."""
    return x[torch.arange(len(x), device=x.device), places][:, None]


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: str, mlp_width: int | None):
        """`activation` is a key of ACTIVATIONS; `mlp_width` None for four times the width."""
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        inner = mlp_width or 4 * width
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, inner), gelu=ACTIVATIONS[activation](), c_proj=nn.Linear(inner, width))
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, causal: bool, places: torch.Tensor | None = None) -> torch.Tensor:
        """[n, t, width] → [n, t, width], or [n, 1, width] of the n `places` alone."""
        x = (x if places is None else _at(x, places)) + self.attn(self.ln_1(x), causal, places)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: str, mlp_width: int | None = None):
        """`layers` blocks of `width`, with `heads` heads each."""
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, activation, mlp_width) for _ in range(layers)
        )

    def forward(self, x: torch.Tensor, places: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """[n, t, width] → [n, width]: of each row what stands at its place, which is all that the last block makes."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, causal)
        return last(x, causal, places)[:, 0]
