"""Checkpoints that other libraries wrote themselves, against the vectors that these libraries give."""

import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT, published_model
from test_model import CAPTIONS, assert_close, unlike_pictures

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import CheckpointError, ClipSpec
from clip_transforms.clip.preprocess import PIXEL_MEAN, PIXEL_STD, Preprocessing
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


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def hugging_face_model(activation="quick_gelu", **vision):
    from transformers import CLIPConfig, CLIPModel

    text = dict(hidden_size=64, intermediate_size=200, num_hidden_layers=2, num_attention_heads=2, eos_token_id=49407)
    vision = dict(image_size=SIDE, patch_size=8, hidden_size=96, num_hidden_layers=3, num_attention_heads=3) | vision
    sizes = {"text_config": text | {"hidden_act": activation}, "vision_config": vision | {"hidden_act": activation}}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=48, **sizes)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 2:
                tensor.normal_(0, tensor.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    hugging_face_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def hugging_face(request, tmp_path_factory):
    """A folder as `save_pretrained` writes it, and the model."""
    folder = tmp_path_factory.mktemp("hf")
    model = hugging_face_model(request.param)
    model.save_pretrained(folder)
    return folder, model


def hugging_face_vectors(model, pixels, captions, **normalisation):
    with torch.no_grad():
        outputs = model(input_ids=tokens_of(captions), pixel_values=normalised(pixels, **normalisation))
    return outputs.image_embeds, outputs.text_embeds


def test_a_hugging_face_folder_gives_its_librarys_vectors_and_says_its_activation(hugging_face):
    folder, theirs = hugging_face
    ours = load(str(folder), "cpu", precision="fp32")
    pixels = unlike_pictures(7, SIDE, 0)
    images, captions = hugging_face_vectors(theirs, pixels, CAPTIONS)
    assert_close(ours.embed_images(pixels), images)
    assert_close(ours.embed_captions(CAPTIONS), captions)
    assert ours.activation == theirs.config.text_config.hidden_act
    assert (ours.architecture.vision_heads, ours.architecture.text_heads) == (
        3,
        2,
    )  # 32 wide, as the configuration says


def test_weights_in_several_files_are_one_checkpoint(hugging_face, tmp_path):
    folder, theirs = hugging_face
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    whole, parts = (load(str(place), "cpu", precision="fp32") for place in (folder, tmp_path))
    assert torch.equal(whole.embed_captions("a cat"), parts.embed_captions("a cat"))
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    checkpoint = ClipSpec(str(tmp_path)).resolve()
    shutil.copy(last, tmp_path / "copy")
    last.write_bytes(last.read_bytes()[:-1] + b"\1")
    assert ClipSpec(str(tmp_path)).resolve().sha256 != checkpoint.sha256


@pytest.mark.parametrize("named", ["../model.safetensors", "/etc/passwd", "model-2.safetensors", "", ".."])
def test_an_index_that_names_a_file_which_does_not_lie_beside_it_is_refused(named, hugging_face_folder, tmp_path):
    shutil.copy(hugging_face_folder / "model.safetensors", tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(hugging_face_folder / "config.json", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": named}}))
    with pytest.raises(CheckpointError, match=f"index.json in it names '{named}', which does not lie beside it"):
        ClipSpec(str(folder)).resolve()


def test_weights_in_several_pickled_files_are_one_checkpoint_too(hugging_face, tmp_path):
    folder, _ = hugging_face
    shutil.copy(folder / "config.json", tmp_path)
    state = list(safetensors.torch.load_file(folder / "model.safetensors").items())
    files = {"pytorch_model-1.bin": state[:30], "pytorch_model-2.bin": state[30:]}
    for name, tensors in files.items():
        torch.save(dict(tensors), tmp_path / name)
    index = {"weight_map": {n: file for file, tensors in files.items() for n, _ in tensors}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    whole, parts = (load(str(place), "cpu", precision="fp32") for place in (folder, tmp_path))
    assert torch.equal(whole.embed_captions("a cat"), parts.embed_captions("a cat"))


def test_a_hugging_face_folder_on_another_file_system(hugging_face):
    import fsspec

    folder, theirs = hugging_face
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/hub/{path.name}", path.read_bytes())
    here, there = (load(place, "cpu", precision="fp32") for place in (str(folder), "memory://hub"))
    assert torch.equal(here.embed_captions("a cat"), there.embed_captions("a cat"))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face's hub as its own file system asks for: one repository, `org/name`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}

    def do_GET(self):  # noqa: N802
        path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
        entries = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
        if path.startswith("/api/models/org/name/tree/"):
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith("/api/models/org/name"):
            self.answer(200, json.dumps({"id": "org/name", "sha": "0" * 40}).encode())
        elif path.startswith("/org/name/resolve/") and name in self.files:
            start, _, end = (self.headers.get("Range") or "bytes=0-")[6:].partition("-")
            data = self.files[name]
            ranged = data[int(start) : int(end) + 1 if end else len(data)]
            self.answer(206 if self.headers.get("Range") else 200, ranged)
        else:
            self.answer(404, b"{}")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_hugging_face_repository_is_read_from_the_hub(hugging_face_folder):
    Hub.files = {path.name: path.read_bytes() for path in hugging_face_folder.iterdir()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "from clip_transforms import clip; m = clip.load('hf://org/name', 'cpu', precision='fp32'); "
        "print(m.embed_captions('a cat')[0, :3].tolist())"
    )
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ | hub, cwd=ROOT
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    here = load(str(hugging_face_folder), "cpu", precision="fp32").embed_captions("a cat")
    assert json.loads(done.stdout) == pytest.approx(here[0, :3].tolist(), abs=1e-6)


PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(INCEPTION),
    "image_std": list(INCEPTION),
}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_preprocessing_follows_the_checkpoint(name, hugging_face, tmp_path):
    folder, theirs = hugging_face
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = PROCESSOR if name.startswith("pre") else {"image_processor": PROCESSOR}
    (tmp_path / name).write_text(json.dumps(content))
    ours = load(str(tmp_path), "cpu", precision="fp32")
    assert ours.preprocessing == Preprocessing(SIDE, INCEPTION, INCEPTION, "shortest", "bilinear")
    pixels = unlike_pictures(7, SIDE, 0)
    images, _ = hugging_face_vectors(theirs, pixels, CAPTIONS, mean=INCEPTION, std=INCEPTION)
    assert_close(ours.embed_images(pixels), images)


@pytest.mark.parametrize(
    "config, processor, sentence",
    [
        ({"model_type": "siglip"}, {}, "says that it is a 'siglip' model"),
        ({"model_type": "chinese_clip"}, {}, "'chinese_clip' model"),
        ({"text_config": {"hidden_act": "relu"}}, {}, "hidden_act is .*relu"),
        ({"vision_config": {"layer_norm_eps": 1e-6}}, {}, "layer_norm_eps is 1e-06"),
        ({"vision_config": {"image_size": 64}}, {}, "pictures of side 32, but its vision_config says 64"),
        (
            {"vision_config": {"image_size": 64}},
            {"size": 64, "crop_size": 64},
            "image side 64, but its tensors are for 32",
        ),
        ({"vision_config": [1]}, {}, "configuration is malformed"),
        ({"vision_config": {"hidden_act": None}}, {}, "hidden_act is None and quick_gelu"),
        *(({"vision_config": {"num_attention_heads": n}}, {}, f"has {n} attention") for n in (0, -3, 50, 1000, 3.0)),
        ({"text_config": {"num_attention_heads": 33}}, {}, "text_config has 33 attention heads for a width of 64"),
        ({"vision_config": {"num_hidden_layers": 2}}, {}, "says vision layers 2, but its tensors are for 3"),
        ({"vision_config": {"hidden_size": 192}}, {}, "says vision width 192, but its tensors are for 96"),
        ({"text_config": {"intermediate_size": 256}}, {}, "says text mlp width 256, but its tensors are for 200"),
        ({"projection_dim": 64}, {}, "says embed dim 64, but its tensors are for 48"),
        ({"text_config_dict": {"hidden_act": "gelu"}}, {}, "hidden_act is gelu and quick_gelu"),
        ({"text_config": {"eos_token_id": 49406}}, {}, "eos_token_id is 49406"),
        ({}, {"size": {"longest_edge": 32}}, "pictures must be square"),
        ({}, {"image_mean": [float("nan")] * 3}, "mean of pixels"),
        ({}, {"do_center_crop": False}, "leaves out a step .do_center_crop is false"),
        ({}, {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({}, {"size": {"shortest_edge": 40}}, "resizes to 40 and crops to 32"),
        ({}, {"crop_size": {"height": 32, "width": 40}}, "pictures must be square"),
        ({}, {"resample": 4}, "resample is 4"),
        ({}, {"image_std": [1, 0, 1]}, "std of pixels"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused_by_name(
    config, processor, sentence, hugging_face_folder, tmp_path
):
    folder = hugging_face_folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        content[name] = content.get(name, {}) | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | processor))
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path)).resolve()


def test_a_hugging_face_file_without_its_folder_needs_the_activation(hugging_face):
    folder, theirs = hugging_face
    file = str(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not say which activation"):
        ClipSpec(file).resolve()


@pytest.mark.parametrize(
    "names, sentence",
    [
        ([], "is a folder without a model"),
        (["config.json"], "is a folder without a model"),
        (["open_clip_config.json"], "has open_clip_config.json, but no weights"),
        (["model.safetensors"], "is a folder without a model"),
        (["config.json", "model.safetensors"], "config.json in it is not JSON"),
    ],
    ids=["empty", "no weights", "open_clip without weights", "no configuration", "no JSON"],
)
def test_a_folder_that_is_no_model_is_refused(names, sentence, tmp_path):
    for name in names:
        (tmp_path / name).write_text("{" if len(names) > 1 else "{}")
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path)).resolve()


# --- what is no CLIP of this kind ------------------------------------------------------------------------------------


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
def test_what_is_no_clip_of_this_kind_is_refused_by_name(name, sentence, tmp_path):
    state = {n: t.contiguous() for n, t in published_model("vit", 0).state_dict().items()}
    safetensors.torch.save_file(state | {name: torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path / "other.safetensors"), "gelu").resolve()


def test_a_wide_tower_needs_the_configuration_that_says_its_heads(tmp_path):
    from clip_transforms.clip.architectures import Architecture
    from clip_transforms.clip.tensor_shapes import architecture_of, tensor_shapes

    wide = tensor_shapes(Architecture(8, 28, 1, 1280, 14, 64, 1, vision_head_width=80))
    with pytest.raises(ValueError, match="1280 wide, .* give the folder"):
        architecture_of(wide)
    assert architecture_of(wide, vision_head_width=80).vision_heads == 16


# --- wrappers --------------------------------------------------------------------------------------------------------


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
def test_what_training_wraps_round_a_state_dict_is_looked_through(wrap, tmp_path):
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


# --- open_clip -------------------------------------------------------------------------------------------------------

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
    """Folders that open_clip wrote, with what it made of some inputs, and the pixels of these."""
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
def test_an_open_clip_folder_gives_its_librarys_vectors(name, open_clip_folders):
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
def test_an_open_clip_file_alone_does_so_too_once_its_activation_is_given(name, file, open_clip_folders):
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
        ({"text_cfg": {"heads": 33}}, "text_cfg has 33 attention heads for a width of 64"),
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


def test_the_folder_is_named_in_what_is_said_of_an_activation_that_contradicts_it(tmp_path):
    torch.save(published_model("vit", 0).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP["plain"]}))
    assert ClipSpec(str(tmp_path)).resolve().activation == "gelu"
    with pytest.raises(CheckpointError, match="was trained with gelu"):
        ClipSpec(str(tmp_path), "quick_gelu").resolve()
