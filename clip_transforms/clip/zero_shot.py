"""Classes × templates → a zero-shot classifier (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.taxonomy import Taxonomy

_BATCH = 256


def zero_shot_classifier(model: ClipModel, taxonomy: Taxonomy) -> torch.Tensor:
    """Embed a taxonomy's classes.

    Args:
        model: its text tower is used.
        taxonomy: k classes.
    Returns:
        float32 [k, d]: each class is the mean of its unit-length prompt embeddings, scaled to length 1. Logits of
        images are `model.logit_scale.exp() * images @ classifier.T`.
    """
    owners, prompts = [], []
    for k, taxonomy_class in enumerate(taxonomy.classes):
        texts = taxonomy.prompts(taxonomy_class)
        prompts.extend(texts)
        owners.extend([k] * len(texts))
    sums = torch.zeros(len(taxonomy.classes), model.embed_dim)
    for start in range(0, len(prompts), _BATCH):
        embeddings = model.embed_captions(prompts[start : start + _BATCH])
        sums.index_add_(0, torch.tensor(owners[start : start + _BATCH]), embeddings)
    return F.normalize(sums, dim=-1)  # the mean and the sum point the same way
