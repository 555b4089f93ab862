"""Pillow image → float32 [3, r, r]: the steps of the published preprocessing, one class each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image


class InterpolationMode(enum.Enum):
    """The one that is asked for."""

    BICUBIC = Image.Resampling.BICUBIC


class Compose:
    """One step after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """All steps."""
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """The shorter side to `size`, the longer one rounded down."""

    def __init__(self, size: int, interpolation: InterpolationMode):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image of the same shape, about."""
        short = min(image.size)
        size = tuple(self.size if side == short else int(self.size * side / short) for side in image.size)
        return image if size == image.size else image.resize(size, self.interpolation.value)


class CenterCrop:
    """The middle square."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image of `size` × `size`."""
        left, top = (round((side - self.size) / 2.0) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    """Bytes → float32 in [0, 1], channels first."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Float32 [3, h, w]."""
        return torch.from_numpy(np.array(image, np.uint8, copy=True)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Minus the mean, by the deviation of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = mean, std

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        mean, std = (torch.tensor(of, dtype=image.dtype)[:, None, None] for of in (self.mean, self.std))
        return image.clone().sub_(mean).div_(std)
