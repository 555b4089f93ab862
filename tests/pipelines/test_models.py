"""`pipelines.models`: the table of models and the description of a checkpoint."""

import pytest
import torch
from conftest import published_model

from clip_transforms.clip.recognition import CheckpointError
from pipelines import models


def printed(argv, capsys):
    assert models.main(argv) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_lists_every_model_with_its_parameters_and_whether_it_is_cached(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path))
    (tmp_path / "ViT-B-32.pt").write_bytes(b"something")
    lines = printed([], capsys)
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert list(rows)[:2] == ["RN50", "RN101"] and len(rows) == 9
    assert "151.3 M  yes" in rows["ViT-B/32"] and "427.9 M  no" in rows["ViT-L/14@336px"]
    assert "623.3 M" in rows["RN50x64"] and str(tmp_path) in lines[-1]


def test_the_parameters_are_those_of_the_published_class():
    from clip_transforms.clip.architectures import Architecture
    from clip_transforms.clip.tensor_shapes import parameters

    sizes = Architecture(48, 64, (1, 2, 1, 1), 32, None, 64, 2)
    assert parameters(sizes) == sum(p.numel() for p in published_model("resnet", 0).parameters())


def test_a_checkpoint_says_what_it_is_and_by_what(capsys, tmp_path):
    torch.save(published_model("vit", 0).state_dict(), tmp_path / "a.pt")
    text = "\n".join(printed(["--check", str(tmp_path / "a.pt")], capsys))
    for piece in (
        "a CLIP with sizes of its own, in the layout of OpenAI",
        "ViT/8",
        "the checkpoint does not say",
        "(state dict)",
        "side 32",
    ):
        assert piece in text
    text = "\n".join(printed(["--check", "demo"], capsys))
    assert "activation     quick_gelu" in text and "whose header names the activation" in text


@pytest.mark.parametrize(
    "name, sentence", [("", "model is an empty text"), ("hf://", "names neither a file nor a folder")]
)
def test_a_name_of_nothing_is_one_sentence(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        models.main(["--check", name])


def test_a_model_that_is_not_cached_is_not_downloaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="not in the cache"):
        models.main(["--check", "RN50"])
    assert list(tmp_path.iterdir()) == []
