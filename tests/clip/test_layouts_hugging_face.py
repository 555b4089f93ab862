"""Checkpoints that Hugging Face's transformers wrote, compared with its own embeddings."""

import http.server
import json
import os
import shutil
import threading

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from forked import run
from layout_inputs import INCEPTION, SIDE, normalised, tokens_of
from test_model import CAPTIONS, assert_close, unlike_pictures

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import Preprocessing
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.run.inspect_path import inspect_path


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
    """A folder that `save_pretrained` wrote, and its model."""
    folder = tmp_path_factory.mktemp("hf")
    model = hugging_face_model(request.param)
    model.save_pretrained(folder)
    return folder, model


def hugging_face_vectors(model, pixels, captions, **normalisation):
    with torch.no_grad():
        outputs = model(input_ids=tokens_of(captions), pixel_values=normalised(pixels, **normalisation))
    return outputs.image_embeds, outputs.text_embeds


def test_a_hugging_face_folder_gives_the_librarys_embeddings_and_its_activation(hugging_face):
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
    what = "a checkpoint: a CLIP with sizes of its own, in the layout of Hugging Face CLIPModel"
    for place, named in ((folder, what), (folder / "model.safetensors", f"model.safetensors of {what}")):
        found = inspect_path(str(place))
        assert found.what == named and dict(found.facts)["activation"] == ours.activation


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
def test_an_index_that_names_a_file_elsewhere_is_refused(named, hugging_face_folder, tmp_path):
    shutil.copy(hugging_face_folder / "model.safetensors", tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(hugging_face_folder / "config.json", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": named}}))
    with pytest.raises(CheckpointError, match=f"index.json in it names '{named}', which is not beside it"):
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
    """The part of Hugging Face's hub that its file system needs, with one repository, `org/name`."""

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
        done = run("-c", program, timeout=60, env=os.environ | hub, cwd=ROOT)
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
        (
            {"text_config": {"num_attention_heads": 33}},
            {},
            "text_config has 33 attention heads, which do not divide its width of 64",
        ),
        ({"vision_config": {"num_hidden_layers": 2}}, {}, "says vision layers 2, but its tensors are for 3"),
        ({"vision_config": {"hidden_size": 192}}, {}, "says vision width 192, but its tensors are for 96"),
        ({"text_config": {"intermediate_size": 256}}, {}, "says text mlp width 256, but its tensors are for 200"),
        ({"projection_dim": 64}, {}, "says embed dim 64, but its tensors are for 48"),
        ({"text_config_dict": {"hidden_act": "gelu"}}, {}, "hidden_act is gelu and quick_gelu"),
        ({"text_config": {"eos_token_id": 49406}}, {}, "eos_token_id is 49406"),
        ({}, {"size": {"longest_edge": 32}}, "pictures must be square"),
        ({}, {"image_mean": [float("nan")] * 3}, "mean of pixels"),
        ({}, {"do_center_crop": False}, "skips a step .do_center_crop is false"),
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
        ([], "this folder holds no model"),
        (["config.json"], "this folder holds no model"),
        (["open_clip_config.json"], "has open_clip_config.json, but no weights"),
        (["model.safetensors"], "this folder holds no model"),
        (["config.json", "model.safetensors"], "config.json in it is not JSON"),
    ],
    ids=["empty", "no weights", "open_clip without weights", "no configuration", "no JSON"],
)
def test_a_folder_that_is_no_model_is_refused(names, sentence, tmp_path):
    for name in names:
        (tmp_path / name).write_text("{" if len(names) > 1 else "{}")
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(tmp_path)).resolve()
