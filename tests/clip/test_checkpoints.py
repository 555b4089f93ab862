"""Checkpoints that are loaded, and files that are refused in one sentence."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import published_model

from clip_transforms.clip.architectures import PUBLISHED, Architecture
from clip_transforms.clip.checkpoints import load, load_checkpoint
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.clip.tensor_shapes import architecture_of


@pytest.fixture(scope="module")
def state():
    return {name: tensor.contiguous() for name, tensor in published_model("vit", 0).state_dict().items()}


def test_pt_and_safetensors_give_the_same_model(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    a, b = (load(str(tmp_path / f"a.{e}"), "cpu", activation="gelu") for e in ("pt", "safetensors"))
    assert torch.equal(a.embed_captions("a cat"), b.embed_captions("a cat"))


def test_a_torchscript_archive_is_read_without_running_it(state, tmp_path):
    model = published_model("vit", 0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long))
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), tmp_path / "script.pt")
    torch.save(state, tmp_path / "a.pt")
    a, b = (load(str(tmp_path / name), "cpu", activation="quick_gelu") for name in ("script.pt", "a.pt"))
    assert torch.equal(a.embed_captions("a cat"), b.embed_captions("a cat"))
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(a.embed_images(pixels), b.embed_images(pixels))


def test_half_precision_weights_become_fp32(state, tmp_path):
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    model = load(str(tmp_path / "half.pt"), "cpu", activation="gelu", precision="fp32")
    assert model.visual.proj.dtype == torch.float32


def test_openais_extra_scalars_are_ignored(state, tmp_path):
    torch.save(state | {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}, tmp_path / "a.pt")
    assert load(str(tmp_path / "a.pt"), "cpu", activation="gelu").image_side == 32


def test_sizes_are_read_off_the_tensors(state):
    sizes = architecture_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert sizes == Architecture(48, 32, 3, 128, 8, 64, 2)
    assert (sizes.vision_heads, sizes.text_heads) == (2, 1)


def test_a_file_that_omits_its_activation_needs_the_flag(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--activation quick_gelu .* or --activation gelu"):
        load(str(tmp_path / "a.pt"))


def test_a_flag_cannot_contradict_the_activation_in_the_file(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="trained with quick_gelu"):
        load(tiny_checkpoint, activation="gelu")


def hostile(path):
    class Bomb:
        def __reduce__(self):
            return (print, ("code from the checkpoint ran",))

    torch.save({"visual.proj": Bomb()}, path)


def without(name):
    def write(path, state):
        torch.save({key: tensor for key, tensor in state.items() if key != name}, path)

    return write


def with_(name, tensor):
    return lambda path, state: torch.save(state | {name: tensor}, path)


@pytest.mark.parametrize(
    "write, sentence",
    [
        (lambda path, _: path.write_bytes(b"hello world, no checkpoint"), "neither a .safetensors file nor"),
        (lambda path, _: path.write_bytes(b""), "neither a .safetensors file nor"),
        (lambda path, _: torch.save([1, 2], path), "ln_final.weight is missing, among 0 tensors"),
        (lambda path, _: torch.save({"a": torch.ones(2)}, path), "ln_final.weight is missing"),
        (without("ln_final.weight"), "ln_final.weight is missing"),
        (without("visual.ln_post.bias"), r"visual.ln_post.bias is missing, but every CLIP of these sizes \(ViT/8"),
        (with_("visual.ln_post.bias", torch.zeros(64)), r"ln_post.bias has shape \[64\], but .* must be \[128\]"),
        (with_("visual.proj", torch.zeros(128)), r"visual.proj has shape \[128\], but .* must be \[128, 48\]"),
        (with_("text_projection", torch.zeros(64, 50)), r"visual.proj has shape \[128, 48\], .* be \[128, 50\]"),
        (with_("visual.more", torch.zeros(3)), "1 tensors that no CLIP of these sizes has, among them visual.more"),
        (with_("token_embedding.weight", torch.zeros(9, 64)), "9 tokens, but CLIP's tokenizer has 49,408"),
        (lambda path, _: hostile(path), "asks for (builtins|__builtin__).print, .* nothing was run"),
    ],
    ids=[
        *("text", "empty", "list", "another model", "no size", "a weight less", "another shape", "another rank"),
        *("two lengths of embeddings", "a weight more", "another vocabulary", "code"),
    ],
)
def test_a_file_that_is_no_clip_is_refused_in_one_sentence(write, sentence, state, tmp_path, capsys):
    path = tmp_path / "model.pt"
    write(path, state)
    with pytest.raises(CheckpointError, match=sentence):
        load(str(path), "cpu", activation="gelu")
    assert "code from the checkpoint ran" not in capsys.readouterr().out


def test_safetensors_of_another_model_are_refused_from_the_header_alone(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="ln_final.weight is missing"):
        ClipSpec(str(tmp_path / "a.safetensors"), "gelu").resolve()


def test_a_worker_refuses_a_file_that_changed_after_planning(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    checkpoint = ClipSpec(str(tmp_path / "a.pt"), "gelu").resolve()
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="changed"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["ViT-B/32", "vit-b-32", "VIT-B/32", "rn50", "ViT-L/14@336px"])
def test_published_names_forgive_case_and_a_dash(name):
    assert ClipSpec(name).published_name in PUBLISHED


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(CheckpointError, match=r"RN50x64.*did you mean ViT-B/32\?"):
        ClipSpec("ViT-B/23").resolve()


def test_cuda_never_falls_back_to_the_cpu_silently(tiny_checkpoint):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(RuntimeError, match="--device is cuda"):
        load(tiny_checkpoint, "cuda")


def test_the_text_tower_alone(tiny_checkpoint):
    spec = ClipSpec(tiny_checkpoint).resolve()
    alone, whole = load_checkpoint(spec, "cpu", vision=False), load_checkpoint(spec, "cpu")
    assert alone.visual is None
    assert torch.equal(alone.embed_captions("a cat"), whole.embed_captions("a cat"))


def test_resolving_imports_no_torch(tiny_checkpoint):
    code = (
        "import sys; from clip_transforms import ClipSpec; "
        f"ClipSpec({json.dumps(tiny_checkpoint)}).resolve(); print('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def broken_header(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "text",
    [b'{"a":5}', b'{"a":{}}', b'{"a":{"shape":null}}', b"[" * 200_000, b'{"__metadata__":null}', b"{"],
    ids=["number", "no shape", "null shape", "nested", "null metadata", "cut"],
)
def test_a_malformed_safetensors_header_is_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(broken_header(text))
    with pytest.raises(CheckpointError, match="a.safetensors"):
        ClipSpec(str(tmp_path / "a.safetensors"), "gelu").resolve()


def test_a_safetensors_file_that_is_cut_off_is_refused_before_a_run(tiny_checkpoint, tmp_path):
    data = open(tiny_checkpoint, "rb").read()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="download it again"):
        ClipSpec(str(tmp_path / "cut.safetensors")).resolve()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"text_projection": torch.ones(64, 48, dtype=torch.int8)}, "holds int8, but weights must be floating point"),
        ({"text_projection": torch.ones(64, 48).to(torch.float8_e4m3fn)}, "is F8_E4M3, but weights must be F16"),
        ({"visual.conv1.weight": torch.ones(128, 3, 0, 0)}, "shape .128, 3, 0, 0., so it holds no numbers"),
        ({"visual.positional_embedding": torch.ones(0, 128)}, "holds no number"),
        ({"visual.positional_embedding": torch.ones(1, 128)}, "pictures of side 0"),
        ({"positional_embedding": torch.ones(1, 64)}, "captions of 1 tokens"),
        (
            {"transformer.resblocks.999999999.x": torch.ones(1)},
            "imply 1,000,000,000 layers, but it has only 75 tensors",
        ),
    ],
)
def test_tensors_that_cannot_give_embeddings_are_refused(change, sentence, state, tmp_path):
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()} | change, path)
    with pytest.raises(CheckpointError, match=sentence):
        ClipSpec(str(path), "gelu").resolve()


def test_the_refusal_of_an_old_torch_file_says_how_to_save_it_again(state, tmp_path):
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="format of torch before 1.6.*save it again"):
        ClipSpec(str(tmp_path / "old.pt"), "gelu").resolve()


def test_a_path_is_a_model(tiny_checkpoint):
    assert ClipSpec(Path(tiny_checkpoint)) == ClipSpec(tiny_checkpoint)


@pytest.mark.parametrize("name", ["vit_b_32", "VIT B/32", "ViT-B-32.pt"])
def test_the_nearest_name_is_found_whatever_the_spelling(name):
    with pytest.raises(CheckpointError, match="did you mean ViT-B/32[?]"):
        ClipSpec(name).resolve()
