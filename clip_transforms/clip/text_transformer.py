"""The text tower: tokens → features."""

from __future__ import annotations

import torch
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.transformer import Transformer


class TextTransformer(nn.Module):
    """A causal transformer whose output at the end token is projected to d."""

    def __init__(self, architecture: Architecture, activation: str):
        """Build the tower with the sizes of `architecture` and the published parameter names, which have no prefix."""
        super().__init__()
        width = architecture.text_width
        self.token_embedding = nn.Embedding(architecture.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(architecture.context_length, width))
        self.transformer = Transformer(
            width, architecture.text_layers, architecture.text_heads, activation, architecture.text_mlp_width
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Attention is causal, so nothing behind the end token changes the result: pad to the batch, not to 77.

        Args:
            tokens: int32 [n, t]; t is at most the context length.
        Returns:
            Features [n, d].
        """
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        ends = tokens.argmax(dim=1)  # the end token has the largest id; argmax finds the first
        return self.ln_final(self.transformer(x, ends, causal=True)) @ self.text_projection
