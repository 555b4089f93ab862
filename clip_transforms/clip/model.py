"""ClipModel: two towers and a logit scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.modified_resnet import ModifiedResNet
from clip_transforms.clip.preprocess import PIXEL_MEAN, PIXEL_STD
from clip_transforms.clip.text_transformer import TextTransformer
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.clip.vision_transformer import VisionTransformer


class ClipModel(nn.Module):
    """CLIP. `encode_*` gives features, with gradients; `embed_*` gives embeddings: unit length, float32, on the CPU.

    Attributes:
        visual: the vision tower.
        text: the text tower.
        logit_scale: the published log parameter, a float32 scalar: logits are `logit_scale.exp()` times the cosine.
    """

    def __init__(self, architecture: Architecture, activation: str):
        """Build both towers; weights come from `checkpoints.load` or from training.

        Args:
            architecture: the sizes.
            activation: `quick_gelu` or `gelu`.
        """
        super().__init__()
        self.architecture = architecture
        self.activation = activation
        self.visual = (
            ModifiedResNet(architecture) if architecture.is_resnet else VisionTransformer(architecture, activation)
        )
        self.text = TextTransformer(architecture, activation)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def image_side(self) -> int:
        """r: the side in pixels of what `embed_images` takes."""
        return self.architecture.image_side

    @property
    def embed_dim(self) -> int:
        """d: the length of an embedding."""
        return self.architecture.embed_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [n, 3, r, r] → features [n, d], not scaled."""
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        return self.visual((pixels.float() / 255 - mean) / std)

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int32 [n, t] → features [n, d], not scaled."""
        return self.text(tokens)

    @torch.inference_mode()
    def embed_images(self, pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Embed a batch of images.

        Args:
            pixels: uint8 [n, 3, r, r], RGB, 0 to 255; normalised here, on the device.
        Returns:
            float32 [n, d] on the CPU; every row has length 1.
        Raises:
            ValueError: if the shape or dtype is another, or r is not this model's image side.
        """
        pixels = torch.as_tensor(pixels)
        expected = (3, self.image_side, self.image_side)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected or pixels.ndim != 4:
            raise ValueError(
                f"pixels are {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}, but this model takes "
                f"uint8 [n, {', '.join(map(str, expected))}]: decode_image(data, side={self.image_side}) gives one "
                "image, and [None] makes it a batch"
            )
        return _unit(self.encode_images(pixels.to(self.device)))

    def embed_captions(self, captions: str | Sequence[str]) -> torch.Tensor:
        """Embed captions.

        Args:
            captions: one text or several; what does not fit the context length is cut.
        Returns:
            float32 [n, d] on the CPU; every row has length 1.
        """
        texts = [captions] if isinstance(captions, str) else list(captions)
        return self.embed_tokens(default_tokenizer().tokenize(texts, self.architecture.context_length).ids)

    @torch.inference_mode()
    def embed_tokens(self, tokens: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Embed captions that are tokenized already.

        Args:
            tokens: int32 [n, t] with start and end tokens, padded with zeros; t at most the context length.
        Returns:
            float32 [n, d] on the CPU; every row has length 1.
        """
        return _unit(self.encode_tokens(torch.as_tensor(tokens).to(self.device)))


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=-1).cpu()
