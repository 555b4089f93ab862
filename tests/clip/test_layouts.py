"""State dicts with the prefixes of training, and models that are no CLIP of the published kind."""

import pytest
import safetensors.torch
import torch
from conftest import published_model

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("visual.trunk.patch_embed.proj.weight", "timm trunk"),
        ("text_decoder.ln_final.weight", "CoCa"),
        ("visual.attn_pool.query", "CoCa"),
        ("logit_bias", "SigLIP"),
        ("vision_model.head.probe", "SigLIP"),
        ("text.transformer.embeddings.word_embeddings.weight", "another library's transformer"),
        ("visual.transformer.resblocks.0.ls_1.gamma", "layer scales"),
        ("text_model.embeddings.word_embeddings.weight", "BERT"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(name, sentence, tmp_path):
    state = {n: t.contiguous() for n, t in published_model("vit", 0).state_dict().items()}
    safetensors.torch.save_file(state | {name: torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path / "other.safetensors"), "gelu").resolve()


def test_a_wide_tower_needs_a_configuration_with_its_heads(tmp_path):
    from clip_transforms.clip.architectures import Architecture
    from clip_transforms.clip.tensor_shapes import architecture_of, tensor_shapes

    wide = tensor_shapes(Architecture(8, 28, 1, 1280, 14, 64, 1, vision_head_width=80))
    with pytest.raises(ValueError, match="1280 wide, .* give the folder"):
        architecture_of(wide)
    assert architecture_of(wide, vision_head_width=80).vision_heads == 16


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}, "optimizer": {"lr": 1e-3}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": state["text_projection"]}}}},
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss.weight": torch.ones(2)}},
        lambda state: state | {"logit_scale": state["logit_scale"][None]},
        lambda state: {"state_dict": state, "args": [torch.float32, torch.Size([2]), torch.device("cpu"), {1}, b"x"]},
    ],
    ids=[
        *("state_dict", "module", "both", "compiled", "parameters", "compiled in DDP", "DDP compiled", "model"),
        *("lightning", "logit scale in a list", "what weights_only takes"),
    ],
)
def test_prefixes_that_training_adds_to_a_state_dict_are_ignored(wrap, tmp_path):
    state = {name: tensor for name, tensor in published_model("vit", 0).state_dict().items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save(wrap(state), tmp_path / "wrapped.pt")
    plain, wrapped = (load(str(tmp_path / f"{n}.pt"), "cpu", activation="gelu") for n in ("plain", "wrapped"))
    assert torch.equal(plain.embed_captions("a cat"), wrapped.embed_captions("a cat"))


def test_views_into_one_storage_are_read_at_their_places(tmp_path):
    state = published_model("vit", 0).state_dict()
    both = torch.stack([state["visual.proj"], state["visual.proj"] + 1])
    torch.save(
        state | {"visual.proj": both[1], "text_projection": state["text_projection"].T.contiguous().T},
        tmp_path / "a.pt",
    )
    model = load(str(tmp_path / "a.pt"), "cpu", activation="gelu", precision="fp32")
    assert torch.equal(model.visual.proj, state["visual.proj"] + 1)
    assert torch.equal(model.text.text_projection, state["text_projection"])
