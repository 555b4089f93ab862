"""Checkpoints that open_clip wrote, compared with its own embeddings."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import published_model
from layout_inputs import INCEPTION, SIDE, normalised, tokens_of
from test_model import CAPTIONS, assert_close, unlike_pictures

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import Preprocessing
from clip_transforms.clip.recognition import CheckpointError

needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None,
    reason="open_clip is not installed: pip install --no-deps open_clip_torch",
)
OPEN_CLIP = {
    "plain": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 128, "patch_size": 8},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2, "context_length": 77, "vocab_size": 49408},
    },
    "quick gelu, wide heads, another mlp": {
        "embed_dim": 48,
        "quick_gelu": True,
        "vision_cfg": {
            **{"image_size": SIDE, "layers": 2, "width": 160, "patch_size": 16, "head_width": 80, "mlp_ratio": 4.9231},
            "patch_dropout": 0.5,
        },
        "text_cfg": {"width": 96, "heads": 3, "layers": 2, "context_length": 32, "vocab_size": 49408},
    },
    "custom text": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"width": 64, "heads": 2, "layers": 2},
    },
    "resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 32, "patch_size": None},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2},
    },
}
PIXELS = {"mean": list(INCEPTION), "std": list(INCEPTION), "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def open_clip_folders(tmp_path_factory):
    """Folders that open_clip wrote, its embeddings of some inputs, and the pixels of those inputs."""
    folders = {}
    for name, config in OPEN_CLIP.items():
        folders[name] = folder = tmp_path_factory.mktemp("open_clip")
        pixels = unlike_pictures(7, config["vision_cfg"]["image_size"], 0)
        tokens = tokens_of(CAPTIONS, config["text_cfg"].get("context_length", 77))
        inputs = {"images": normalised(pixels, INCEPTION, INCEPTION), "tokens": tokens, "pixels": pixels}
        torch.save(inputs, folder / "inputs.pt")
        (folder / "config.in").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PIXELS}))
    program = Path(__file__).with_name("write_open_clip.py")
    argv = [sys.executable, program, *folders.values()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return folders


@needs_open_clip
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_an_open_clip_folder_gives_the_librarys_embeddings(name, open_clip_folders):
    folder, config = open_clip_folders[name], OPEN_CLIP[name]
    theirs, pixels = torch.load(folder / "outputs.pt"), torch.load(folder / "inputs.pt")["pixels"]
    ours = load(str(folder), "cpu", precision="fp32")
    side, length = config["vision_cfg"]["image_size"], config["text_cfg"].get("context_length", 77)
    assert ours.preprocessing == Preprocessing(side, INCEPTION, INCEPTION, "squash", "bilinear", 0, length)
    assert ours.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
    assert_close(ours.embed_images(pixels), theirs["images"])
    assert_close(ours.embed_captions(CAPTIONS), theirs["captions"])


@needs_open_clip
@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "epoch_3.pt"])
@pytest.mark.parametrize("name", ["plain", "resnet"])
def test_an_open_clip_file_alone_gives_them_too_with_the_activation_flag(name, file, open_clip_folders):
    folder = open_clip_folders[name]
    with pytest.raises(CheckpointError, match="does not say which activation"):
        load(str(folder / file), "cpu")
    ours = load(str(folder / file), "cpu", activation="gelu", precision="fp32")
    assert_close(ours.embed_captions(CAPTIONS), torch.load(folder / "outputs.pt")["captions"])


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"init_logit_bias": -10}, "SigLIP"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "timm_model_name 'vit_base'"),
        ({"vision_cfg": {"pool_type": "avg"}}, "pool_type 'avg'"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name 'roberta-base'"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, "tokenizer_kwargs"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type 'last'"),
        ({"text_cfg": {"something_new": 1}}, "something_new 1"),
        ({"vision_cfg": {"image_size": 64}}, "image side 64, but its tensors are for 32"),
        ({"vision_cfg": {"layers": 2}}, "vision layers 2, but its tensors are for 3"),
        ({"vision_cfg": {"mlp_ratio": 3}}, "vision mlp width 384, but its tensors are for 512"),
        ({"embed_dim": 64}, "embed dim 64, but its tensors are for 48"),
        *(({"vision_cfg": {"head_width": width}}, f"has head_width {width}") for width in (0, -64, None)),
        ({"text_cfg": {"heads": 33}}, "text_cfg has 33 attention heads, which do not divide its width of 64"),
    ],
)
def test_an_open_clip_configuration_of_another_kind_is_refused_by_name(change, sentence, tmp_path):
    torch.save(published_model("vit", 0).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = dict(OPEN_CLIP["plain"])
    for name, value in change.items():
        config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path)).resolve()


def test_the_refusal_of_a_contradicting_activation_names_the_folder(tmp_path):
    torch.save(published_model("vit", 0).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP["plain"]}))
    assert ClipSpec(str(tmp_path)).resolve().activation == "gelu"
    with pytest.raises(CheckpointError, match="was trained with gelu"):
        ClipSpec(str(tmp_path), "quick_gelu").resolve()
