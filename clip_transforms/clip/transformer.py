"""The pre-norm transformer in both of CLIP's towers, with the published parameter names."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU with which OpenAI trained its checkpoints."""

    FACTOR = 1.702

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the activation to a tensor of any shape."""
        return x * torch.sigmoid(self.FACTOR * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for query, key and value."""

    def __init__(self, width: int, heads: int):
        """Build the layer with the parameter names of `torch.nn.MultiheadAttention`."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, t, width] → [n, t, width]; with `causal`, a place sees itself and the places before it."""
        n, t, width = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(x.transpose(1, 2).reshape(n, t, width))

    def at(self, x: torch.Tensor, places: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, t, width] → [n, width]: compute `forward` at one place of each row."""
        q, k, v = self.in_proj_weight.chunk(3)
        q_bias, _, v_bias = self.in_proj_bias.chunk(3)
        seen = torch.arange(x.shape[1], device=x.device) <= places[:, None] if causal else None
        return self.out_proj(attend_once(F.linear(take(x, places), q, q_bias), x, k, v, v_bias, self.heads, seen))


def take(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[n, t, width] → [n, width]: take one place from each row."""
    return x[torch.arange(len(x), device=x.device), places]


def attend_once(
    query: torch.Tensor,
    x: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    heads: int,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention with one query per row, without making the keys and values.

    query · (K x) = (query · K) x, and the sum of p · (V x) over the places equals V times the sum of p · x. The keys'
    bias can be left out: it adds the same number at every place, and softmax cancels it. The values' bias is added
    once, since the p sum to 1.

    Args:
        query: [n, width], projected.
        x: [n, t, width], the input of the keys and values.
        k_weight: [width, width].
        v_weight: [width, width].
        v_bias: [width].
        heads: the number of heads, a divisor of the width.
        seen: bool [n, t], the places to attend to; all places if omitted.
    Returns:
        [n, width], the heads side by side.
    """
    n, _, width = x.shape
    queries = query.view(n, heads, width // heads).transpose(0, 1)  # [heads, n, width / heads]
    keyed = (queries @ k_weight.view(heads, -1, width)).transpose(0, 1)  # [n, heads, width]
    logits = keyed @ x.transpose(1, 2) * (width // heads) ** -0.5  # [n, heads, t]
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
    mixed = logits.softmax(dim=2, dtype=torch.float32).to(x.dtype) @ x  # [n, heads, width]
    values = mixed.transpose(0, 1) @ v_weight.view(heads, -1, width).transpose(1, 2)  # [heads, n, width / heads]
    return values.transpose(0, 1).reshape(n, width) + v_bias


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: str, mlp_width: int | None):
        """Build a block; `activation` is a key of ACTIVATIONS, and an `mlp_width` of None means four times `width`."""
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        inner = mlp_width or 4 * width
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, inner), gelu=ACTIVATIONS[activation](), c_proj=nn.Linear(inner, width))
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, t, width] → [n, t, width]."""
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))

    def at(self, x: torch.Tensor, places: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, t, width] → [n, width]: compute `forward` at one place of each row."""
        x = take(x, places) + self.attn.at(self.ln_1(x), places, causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: str, mlp_width: int | None = None):
        """Build `layers` blocks of `width`, with `heads` heads each."""
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, activation, mlp_width) for _ in range(layers)
        )

    def forward(self, x: torch.Tensor, places: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """[n, t, width] → [n, width]: the output at one place of each row; the last block computes only these."""
        *blocks, last = self.resblocks
        assert isinstance(last, ResidualAttentionBlock)
        for block in blocks:
            x = block(x, causal)
        return last.at(x, places, causal)
