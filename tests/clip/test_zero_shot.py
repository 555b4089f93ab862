"""The zero-shot classifier compared with its definition, written out."""

import resource

import pytest
import torch

from clip_transforms.clip import zero_shot
from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.taxonomy import Taxonomy, TaxonomyClass


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


def test_a_class_is_the_mean_of_its_unit_prompts_scaled_to_length_one(model):
    taxonomy = Taxonomy(
        "t",
        (TaxonomyClass("cat"), TaxonomyClass("crane", ("crane bird",)), TaxonomyClass("no", prompts=("a blank page",))),
        ("a photo of a {}.", "one {c}"),
    )
    found = zero_shot.zero_shot_classifier(model, taxonomy)
    prompts = [
        ["a photo of a cat.", "one cat"],
        ["a photo of a crane.", "one crane", "a photo of a crane bird.", "one crane bird"],
        ["a blank page"],
    ]
    for row, texts in zip(found, prompts, strict=True):
        mean = torch.stack([model.embed_captions(text)[0] for text in texts]).mean(dim=0)
        assert (row - mean / mean.norm()).norm() <= 1e-5
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_one_class_is_a_taxonomy(model):
    assert zero_shot.zero_shot_classifier(model, Taxonomy("t", (TaxonomyClass("cat"),))).shape == (1, 48)


def test_a_prompt_that_classes_share_is_embedded_once(model, monkeypatch):
    seen = []
    embed = model.embed_captions
    monkeypatch.setattr(model, "embed_captions", lambda texts: seen.extend(texts) or embed(texts))
    taxonomy = Taxonomy("t", (TaxonomyClass("a", prompts=("x", "y")), TaxonomyClass("b", prompts=("y", "z"))))
    found = zero_shot.zero_shot_classifier(model, taxonomy)
    assert sorted(seen) == ["x", "y", "z"]
    assert 0 < (found[0] - found[1]).norm() < 2


@pytest.mark.slow  # a million prompts: ten minutes
@pytest.mark.timeout(3600)
def test_ten_thousand_classes_with_eighty_templates_take_little_memory(model):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    templates = tuple(f"{i} photos of a {{}}." for i in range(80))
    taxonomy = Taxonomy("t", tuple(TaxonomyClass(f"thing {i}") for i in range(10_000)), templates)
    assert zero_shot.zero_shot_classifier(model, taxonomy).shape == (10_000, 48)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10
    )  # kB; all prompts' embeddings would take 150 MB
