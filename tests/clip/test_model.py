"""Embeddings compared with the published model.py, loaded by path, with random weights that all matter."""

import numpy as np
import pytest
import torch
from conftest import published_model

from clip_transforms.clip import checkpoints, precision
from clip_transforms.clip.checkpoints import DTYPES, load
from clip_transforms.clip.preprocess import PIXEL_MEAN, PIXEL_STD
from clip_transforms.clip.tokenizer import default_tokenizer

CAPTIONS = ["a cat", "two dogs on a red sofa", "", "a very long caption " * 30, "naïve café 😀", "<|endoftext|> behind"]


def published_embeddings(model, pixels, captions):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    tokens = torch.zeros(len(captions), 77, dtype=torch.int64)
    for row, caption in zip(tokens, captions, strict=True):
        ids, _ = default_tokenizer().encode(caption)
        row[: len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        images = model.encode_image((pixels.float() / 255 - mean) / std)
        texts = model.encode_text(tokens)
    return [x / x.norm(dim=1, keepdim=True) for x in (images, texts)]


def saved(model, path):
    torch.save(model.state_dict(), path)
    return str(path)


def unlike_pictures(n, side, seed):
    """Coarse patterns in very different colours; a ResNet cannot tell pictures of mere pixel noise apart."""
    coarse = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) ** 3 * 255
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").round().to(torch.uint8)


def assert_close(ours, theirs):
    """Compare rows: within 1e-5, and within 1e-4 of the spread, since random towers make all embeddings parallel."""
    difference = (ours - theirs).norm(dim=1)
    spread = (theirs - theirs.mean(dim=0)).norm(dim=1).mean()
    assert (difference / theirs.norm(dim=1)).max() <= 1e-5
    assert spread > 1e-3, "the rows hardly differ, so that this test would say nothing"
    assert difference.max() <= 1e-4 * spread


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_embeddings_are_those_of_the_published_model(kind, seed, tmp_path):
    theirs = published_model(kind, seed)
    ours = load(saved(theirs, tmp_path / "model.pt"), "cpu", activation="quick_gelu", precision="fp32")
    pixels = unlike_pictures(9, ours.image_side, seed)
    images, captions = published_embeddings(theirs, pixels, CAPTIONS)
    assert_close(ours.embed_images(pixels), images)
    assert_close(ours.embed_captions(CAPTIONS), captions)
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item())


def test_the_batch_and_its_padding_do_not_change_an_embedding(tiny_checkpoint):
    model = load(tiny_checkpoint, "cpu", precision="fp32")
    together = model.embed_captions(CAPTIONS)
    alone = torch.cat([model.embed_captions(caption) for caption in CAPTIONS])
    assert (together - alone).norm(dim=1).max() <= 1e-5
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), np.uint8)
    reverse = model.embed_images(pixels[::-1].copy()).flip(0)
    assert (model.embed_images(pixels) - reverse).norm(dim=1).max() <= 1e-5


def test_embeddings_have_length_one_and_are_float32_on_the_cpu(tiny_checkpoint):
    model = load(tiny_checkpoint, "cpu")
    images = model.embed_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert images.dtype == torch.float32 and images.shape == (2, 48) and images.device.type == "cpu"
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 31, 31, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 32),
        [torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 31, 32, dtype=torch.uint8)],
    ],
    ids=["another side", "channels last", "floats", "one of a list"],
)
def test_the_refusal_of_other_pixels_says_what_is_taken(tiny_checkpoint, pixels):
    with pytest.raises(ValueError, match=r"uint8 \[n, 3, 32, 32\]"):
        load(tiny_checkpoint, "cpu").embed_images(pixels)


@pytest.mark.parametrize("form", [list, tuple, torch.stack], ids=["list", "tuple", "batch"])
def test_images_come_as_a_batch_or_as_a_list_or_alone(tiny_checkpoint, form):
    model = load(tiny_checkpoint, "cpu", precision="fp32")
    images = list(unlike_pictures(3, 32, 0))
    together = model.embed_images(form(images))
    assert together.shape == (3, 48)
    assert (model.embed_images(images[1]) - together[1]).norm() <= 1e-5
    assert model.embed_images([]).shape == (0, 48)


def test_the_refusal_of_bytes_as_pixels_says_what_to_call(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"pixels are bytes, .* model.decode_image\(data\)"):
        load(tiny_checkpoint, "cpu").embed_images(b"cat.jpg")


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_half_precision_is_near_fp32_and_gives_float32(kind, precision, dtype, tmp_path):
    path = saved(published_model(kind, 0), tmp_path / "model.pt")
    exact, half = (load(path, "cpu", activation="quick_gelu", precision=p) for p in ("fp32", precision))
    assert {p.dtype for n, p in half.named_parameters() if n != "logit_scale"} == {dtype}
    assert half.logit_scale.dtype == torch.float32 and half.precision == precision
    pixels = unlike_pictures(5, half.image_side, 0)
    for ours, theirs in (
        (half.embed_images(pixels), exact.embed_images(pixels)),
        (half.embed_captions(CAPTIONS), exact.embed_captions(CAPTIONS)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours)))
        assert (ours * theirs).sum(dim=1).min() > 0.99
        assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("speedup, name", [(0.7, "fp32"), (1.4, "fp32"), (2.2, "bf16"), (6.0, "bf16")])
def test_auto_is_bf16_on_a_cpu_that_shows_it_to_be_faster(speedup, name, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    model = load(tiny_checkpoint, "cpu", precision="auto")
    assert model.precision == name and model.visual.proj.dtype == DTYPES[name]


def test_auto_is_fp32_for_a_resnet_on_any_cpu(monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 6.0)
    assert precision.resolve_precision("auto", torch.device("cpu"), is_resnet=True) == "fp32"
    assert precision.resolve_precision("bf16", torch.device("cpu"), is_resnet=True) == "bf16", "whoever asks gets it"


@pytest.mark.parametrize("in_bf16", [0.1, 3.0, 100.0], ids=["fast", "slow", "emulated"])
def test_the_processor_shows_how_fast_it_is(in_bf16, monkeypatch):
    """With a clock that gives fp32 products one second, and products in bf16 as many as a parameter says."""
    now, linear = [0.0], torch.nn.functional.linear

    def timed(rows, weights):
        now[0] += (in_bf16 if rows.dtype == torch.bfloat16 else 1.0) * (len(rows) / 256)
        return linear(rows, weights)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    expected = 0.0 if in_bf16 == 100 else pytest.approx(1 / in_bf16)
    assert precision.measure_bf16() == expected


@pytest.mark.parametrize("capability, name", [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")], ids=str)
def test_auto_is_bf16_on_a_gpu_from_ampere_on_and_fp16_before(capability, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve_precision("auto", torch.device("cuda")) == name


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
def test_auto_is_fp16_on_a_gpu_for_weights_that_are_stored_so(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    asked = []

    def on_gpu(wanted, device, *about):
        asked.append(precision.resolve_precision(wanted, torch.device("cuda"), *about))
        return "fp32"

    monkeypatch.setattr(checkpoints, "resolve_precision", on_gpu)
    model = published_model("vit", 0)
    model.visual.proj.data, model.text_projection.data = model.visual.proj.to(stored), model.text_projection.to(stored)
    load(saved(model, tmp_path / "model.pt"), "cpu", activation="quick_gelu")
    assert asked == ["fp16" if stored == torch.float16 else "bf16"]


def test_the_other_activation_gives_other_embeddings(tmp_path):
    path = saved(published_model("vit", 0), tmp_path / "model.pt")
    quick, exact = (load(path, "cpu", activation=a).embed_captions("a cat") for a in ("quick_gelu", "gelu"))
    assert (quick - exact).norm() > 1e-3


@pytest.mark.parametrize("captions", [None, 5, [1], b"a cat", ["a cat", None]], ids=str)
def test_the_refusal_of_other_things_than_captions_says_what_is_taken(captions, tiny_checkpoint):
    with pytest.raises(TypeError, match="but this model takes one str or several"):
        load(tiny_checkpoint, "cpu").embed_captions(captions)


@pytest.mark.parametrize(
    "tokens",
    [torch.ones(7, dtype=torch.int32), torch.ones(1, 7), torch.ones(1, 78, dtype=torch.int32)],
    ids=["no batch", "no numbers of tokens", "too long"],
)
def test_the_refusal_of_other_tokens_says_what_makes_them(tokens, tiny_checkpoint):
    with pytest.raises(ValueError, match=r"takes int32 \[n, t\] with t at most 77: Tokenizer"):
        load(tiny_checkpoint, "cpu").embed_tokens(tokens)


def test_mirrored_pixels_and_a_missing_tower(tiny_checkpoint):
    model = load(tiny_checkpoint, "cpu", precision="fp32")
    pixels = unlike_pictures(1, model.image_side, 0)[0].numpy()
    mirrored = pixels[:, :, ::-1]
    assert torch.equal(model.embed_images(mirrored), model.embed_images(mirrored.copy()))
    with pytest.raises(ValueError, match="without its vision tower"):
        load(tiny_checkpoint, "cpu", vision=False).embed_images(pixels)


@pytest.mark.parametrize("data", ["cat.jpg", None, 5])
def test_the_refusal_of_a_name_as_image_bytes_says_what_to_call(data, tiny_checkpoint):
    with pytest.raises(TypeError, match="it must be encoded bytes"):
        load(tiny_checkpoint, "cpu").decode_image(data)
