"""Make a zero-shot classifier from classes and templates (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tqdm import tqdm

from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.taxonomy import Taxonomy

_BATCH = 256
_MANY = 20 * _BATCH  # from this number of prompts on, a progress bar is shown


def zero_shot_classifier(model: ClipModel, taxonomy: Taxonomy) -> torch.Tensor:
    """Embed a taxonomy's classes; a prompt that several classes share is embedded once.

    Memory holds the prompts' texts, one batch, and the k sums, but not the prompts' embeddings. With many prompts, a
    progress bar shows the rate if there is a terminal.

    Args:
        model: the model; only its text tower is used.
        taxonomy: k classes.
    Returns:
        float32 [k, d]: each class is the mean of its unit-length prompt embeddings, scaled to length 1. Images have
        the logits `model.logit_scale.exp() * images @ classifier.T`.
    """
    owners: dict[str, list[int]] = {}
    for k, taxonomy_class in enumerate(taxonomy.classes):
        for prompt in taxonomy.prompts(taxonomy_class):
            owners.setdefault(prompt, []).append(k)
    prompts = sorted(owners, key=len)  # prompts of similar length share a batch, since a batch is padded to its longest
    sums = torch.zeros(len(taxonomy.classes), model.embed_dim)
    quiet = None if len(prompts) >= _MANY else True
    with tqdm(total=len(prompts), unit=" prompts", desc=f"taxonomy {taxonomy.name}", disable=quiet) as bar:
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            embeddings = model.embed_captions(batch)
            places = [(row, k) for row, prompt in enumerate(batch) for k in owners[prompt]]
            rows, classes = torch.tensor(places).T
            sums.index_add_(0, classes, embeddings[rows])
            bar.update(len(batch))
    return F.normalize(sums, dim=-1)  # the mean and the sum point the same way
