"""Checkpoints as training programs save them: things beside the weights, several models, models in larger ones."""

import argparse
import collections
import json
import os
import pathlib
import random
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import published_model
from test_layouts_hugging_face import hugging_face_model

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.layouts import recognise
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError


@pytest.fixture(scope="module")
def state():
    return {name: tensor.contiguous() for name, tensor in published_model("vit", 0).state_dict().items()}


@pytest.fixture(scope="module")
def other():
    return {name: tensor.contiguous() for name, tensor in published_model("vit", 1).state_dict().items()}


@pytest.fixture(scope="module")
def expected(state, tmp_path_factory):
    return embedded(state, tmp_path_factory.mktemp("expected") / "a.pt")


def embedded(content, path, key=None):
    """Save with torch, load, and embed a caption."""
    torch.save(content, path)
    return load(str(path), "cpu", activation="gelu", precision="fp32", checkpoint_key=key).embed_captions("a cat")


class Config(dict):
    """A configuration as omegaconf, yacs and the like write it: a class of another library that is like a dict."""

    def __getattr__(self, name):
        return self[name]


class Plan(list):
    pass


class Ran:
    """Code that leaves a file if anything runs it."""

    def __reduce__(self):
        return os.mkdir, ("RAN",)


def of_torch(name):
    """A tensor whose class is not torch's own."""
    kind = type(name, (torch.Tensor,), {"__module__": __name__})
    globals()[name] = kind
    return torch.ones(2).as_subclass(kind)


def tagged(tensor):
    tensor = tensor.clone()
    tensor.tag = 1
    return tensor


BESIDE = {
    "numpy scalars": lambda: {"epoch": np.int64(3), "best": np.float64(0.5), "bool": np.bool_(True)},
    "numpy arrays": lambda: {"a": np.zeros(4), "b": np.array(["x"], object), "c": np.array(["2026"], "datetime64[D]")},
    "random states": lambda: {
        "numpy": np.random.get_state(),
        "generator": np.random.default_rng(0),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    },
    "a Namespace": lambda: argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("/x")),
    "paths": lambda: [pathlib.PosixPath("/x"), {"out": pathlib.PurePosixPath("a/b")}],
    "a defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "complex tensors": lambda: {
        "a": torch.zeros(2, dtype=torch.complex64),
        "b": torch.zeros(2, dtype=torch.complex128),
    },
    "float8 tensors": lambda: torch.zeros(4).to(torch.float8_e4m3fn),
    "tensors of unsigned numbers": lambda: torch.zeros(4, dtype=torch.uint16),
    "sparse tensors": lambda: torch.eye(3).to_sparse(),
    "a tensor with attributes": lambda: tagged(torch.ones(3)),
    "a tensor of another class": lambda: of_torch("Strange"),
    "a configuration that is like a dict": lambda: Config(lr=1, nested=Config(a=2)),
    "a class that is like a list": lambda: Plan([1, 2]),
    "a simple namespace": lambda: types.SimpleNamespace(a=1),
    "an optimizer": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]),
    "an exception, a range and a set": lambda: [ValueError("x"), range(3), {1, 2}, frozenset("a"), slice(1, 2)],
    "code": Ran,
}


@pytest.mark.parametrize("protocol", [2, 4], ids="pickle {}".format)
@pytest.mark.parametrize("what", BESIDE)
def test_things_beside_the_weights_are_passed_over_unread_and_unrun(
    what, protocol, state, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "beside": BESIDE[what]()}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    found = load(str(tmp_path / "a.pt"), "cpu", activation="gelu", precision="fp32").embed_captions("a cat")
    assert torch.equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    "dress",
    [
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: dressed(torch.nn.Parameter(tensor)),
        tagged,
        lambda tensor: torch.nn.Buffer(tensor),
    ],
    ids=["parameters", "parameters with attributes", "tensors with attributes", "buffers"],
)
def test_weights_may_carry_attributes(dress, state, expected, tmp_path):
    assert torch.equal(embedded({name: dress(tensor) for name, tensor in state.items()}, tmp_path / "a.pt"), expected)


def dressed(parameter):
    parameter.no_decay = True
    return parameter


def test_weights_in_a_container_that_is_like_a_dict_are_read(state, expected, tmp_path):
    assert torch.equal(embedded({"state_dict": Config(state)}, tmp_path / "a.pt"), expected)


@pytest.mark.parametrize(
    "weight, sentence",
    [
        (lambda tensor: Ran(), "its pickle asks for posix.mkdir, which weights do not need, so visual.proj was passed"),
        (
            lambda tensor: tensor.to(torch.complex64),
            "visual.proj is a tensor of torch.ComplexFloatStorage, but weights",
        ),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "visual.proj is a tensor of torch.float8_e4m3fn, but weights"),
        (lambda tensor: tensor.detach().numpy(), "visual.* is missing|has shape"),
        (lambda tensor: tensor.as_subclass(type(of_torch("Odd"))), "asks for .*Odd, which weights do not need"),
    ],
    ids=["code", "complex", "float8", "numpy", "another class"],
)
def test_a_weight_that_cannot_be_read_is_named(weight, sentence, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state | {"visual.proj": weight(state["visual.proj"]), "beside": Config(a=1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path / "a.pt"), "gelu").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="asks for torch.nn.modules.container.Sequential, .* nothing was run"):
        ClipSpec(str(tmp_path / "a.pt"), "gelu").resolve()


def test_safetensors_of_other_dtypes_beside_the_weights_are_passed_over(state, expected, tmp_path):
    more = {"extra": torch.zeros(4).to(torch.float8_e4m3fn), "counts": torch.zeros(3, dtype=torch.uint16)}
    prefixed = {f"model.{name}": tensor for name, tensor in state.items()}
    safetensors.torch.save_file(prefixed | more, tmp_path / "a.safetensors")
    found = load(str(tmp_path / "a.safetensors"), "cpu", activation="gelu", precision="fp32").embed_captions("a cat")
    assert torch.equal(found, expected)
    weights = prefixed | {"model.visual.proj": state["visual.proj"].to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="model.visual.proj is F8_E4M3, but weights must be F16, BF16, F32 or"):
        ClipSpec(str(tmp_path / "a.safetensors"), "gelu").resolve()


def under(start, weights):
    return {start + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "arrange, keys",
    [
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, ["state_dict", "state_dict_ema"]),
        (lambda a, b: {"model": under("module.", a), "model_ema": b}, ["model.module", "model_ema"]),
        (lambda a, b: {"state_dict": under("model.", a) | under("ema.", b)}, ["state_dict.model", "state_dict.ema"]),
        (lambda a, b: under("student.", a) | under("teacher.", b), ["student", "teacher"]),
        (lambda a, b: a | under("ema_model.", b), [".", "ema_model"]),
        (lambda a, b: {"epoch": 3, "weights": {"online": a, "averaged": {"model": b}}}, None),
    ],
    ids=["timm", "fairseq", "lightning", "distillation", "one without a start", "deep"],
)
def test_several_models_in_one_file_are_named_and_chosen_from(arrange, keys, state, other, expected, tmp_path):
    keys = keys or ["weights.online", "weights.averaged.model"]
    content, path = arrange(state, other), tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="it holds 2 models; choose one with --checkpoint_key") as caught:
        ClipSpec(str(path), "gelu").resolve()
    named = [part.split()[-1] for part in str(caught.value).split("choose one with ")[1].split(" or ")]
    assert sorted(named) == sorted(keys)
    first, second = (embedded(content, path, key) for key in keys)
    assert (
        torch.equal(first, expected) and torch.equal(second, embedded(other, path)) and not torch.equal(first, second)
    )


@pytest.mark.parametrize(
    "arrange, key",
    [
        (lambda a: under("clip_model.", a), "clip_model"),
        (
            lambda a: {"state_dict": under("clip_model.", a) | {"head.weight": torch.zeros(3, 64)}},
            "state_dict.clip_model",
        ),
        (lambda a: under("module.", a) | {"n_averaged": torch.tensor(3)}, "module"),
        (lambda a: {"state_dict": under("model.visual.clip.", a)}, "state_dict.model.visual.clip"),
    ],
    ids=["alone", "beside a head", "an averaged model", "in something called visual"],
)
def test_a_model_in_a_larger_one_is_named(arrange, key, state, expected, tmp_path):
    content, path = arrange(state), tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"begin with {key}\.; give --checkpoint_key {key}$"):
        ClipSpec(str(path), "gelu").resolve()
    for way in (key, f"{key}."):
        assert torch.equal(embedded(content, path, way), expected)


def test_a_wrong_key_is_refused_and_the_right_ones_are_named(state, other, tmp_path):
    torch.save({"state_dict": state, "ema": other}, tmp_path / "two.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"is emma, but no .* with emma\.; give .*key ema or .*key state_dict$"):
        ClipSpec(str(tmp_path / "two.pt"), checkpoint_key="emma").resolve()
    with pytest.raises(CheckpointError, match=r"no tensor's name begins with emma\.; omit the flag$"):
        ClipSpec(str(tmp_path / "none.pt"), checkpoint_key="emma").resolve()
    for model, key in (("ViT-B/32", "ema"), (str(tmp_path / "two.pt"), "")):
        with pytest.raises(ValueError, match=f"--checkpoint_key is {key!r}, but .* omit the flag"):
            ClipSpec(model, checkpoint_key=key)


def test_very_many_models_are_told_apart_in_no_time():
    names = [f"{i}.{name}" for i in range(100_000) for name in ("ln_final.weight", "visual.proj")]
    with pytest.raises(ValueError, match="it holds 100,000 models; .* or 99,996 more$"):
        recognise(names)


def modules(*kinds, path="0_CLIPModel"):
    """The list of layers that sentence-transformers writes."""
    layers = [{"path": f"{place}_{kind.rsplit('.', 1)[-1]}", "type": kind} for place, kind in enumerate(kinds)]
    return json.dumps([{**layers[0], "path": path}, *layers[1:]])


@pytest.mark.parametrize(
    "kinds",
    [
        ["sentence_transformers.models.CLIPModel"],
        ["sentence_transformers.models.CLIPModel", "sentence_transformers.models.Normalize"],
        ["sentence_transformers.models.CLIPModel.CLIPModel"],
    ],
    ids=["alone", "normalised", "a name of a later release"],
)
def test_the_outer_folder_of_sentence_transformers_is_opened(kinds, tmp_path):
    hugging_face_model().save_pretrained(tmp_path / "st" / "0_CLIPModel")
    (tmp_path / "st" / "modules.json").write_text(modules(*kinds))
    outer, inner = (load(str(tmp_path / path), "cpu", precision="fp32") for path in ("st", "st/0_CLIPModel"))
    assert torch.equal(outer.embed_captions("a cat"), inner.embed_captions("a cat"))
    assert outer.embed_captions("a cat").norm() == pytest.approx(1)


@pytest.mark.parametrize(
    "listed, sentence",
    [
        (
            modules("sentence_transformers.models.Transformer", "models.Pooling"),
            "lists Transformer, Pooling, but it mus",
        ),
        (
            modules("models.CLIPModel", "models.Dense"),
            "lists CLIPModel, Dense, but it must list a CLIPModel and no oth",
        ),
        (
            modules("models.CLIPModel", path="../elsewhere"),
            r"names the folder '\.\./elsewhere', but it must be one besid",
        ),
        (modules("models.CLIPModel", path="/etc"), "names the folder '/etc', but"),
        (modules("models.CLIPModel", path=7), "names the folder 7, but"),
        (modules("models.CLIPModel"), "0_CLIPModel in it: this folder holds no model"),
        ("[]", "lists nothing, but it must list a CLIPModel"),
        ("[1]", "configuration is malformed"),
        ("{}", "modules.json in it is not a JSON list"),
    ],
)
def test_an_outer_folder_that_holds_no_clip_is_refused(listed, sentence, tmp_path):
    (tmp_path / "st" / "0_CLIPModel").mkdir(parents=True)
    (tmp_path / "st" / "modules.json").write_text(listed)
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path / "st")).resolve()
