"""Inputs for both our models and those of other libraries."""

import torch

from clip_transforms.clip.preprocess import PIXEL_MEAN, PIXEL_STD
from clip_transforms.clip.tokenizer import default_tokenizer

SIDE = 32
INCEPTION = (0.5, 0.5, 0.5)


def tokens_of(captions, length=77):
    rows = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in zip(rows, captions, strict=True):
        ids, _ = default_tokenizer().encode(caption, length)
        row[: len(ids)] = torch.tensor(ids)
    return rows


def normalised(pixels, mean=PIXEL_MEAN, std=PIXEL_STD):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    return (pixels.float() / 255 - mean) / std
