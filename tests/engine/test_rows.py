"""Every modality of every sample ends in exactly one place, and the numbers are the model's."""

import contextlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import picture

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.preprocess import decode_image
from clip_transforms.engine.decode import DecodeAhead
from clip_transforms.engine.forward import Embedder
from clip_transforms.engine.rows import finish_batch, shard_reject
from schemas.embeddings import embeddings_schema
from schemas.rejects import REASONS, rejects_schema
from schemas.samples import IMAGE_URI, samples_schema


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


def samples(rows):
    rows = [{"key": f"k{i}", "row": 10 + i, **row} for i, row in enumerate(rows)]
    return pa.RecordBatch.from_pylist(rows, schema=samples_schema())


def embed(model, rows, dtype="float32"):
    embedder = Embedder(model)
    decoded = DecodeAhead([(0, samples(rows)), "end"], model.preprocessing, embedder.ceiling, 2)
    batch, _ = embedder.forward(decoded, Counter())
    return finish_batch(batch, "s", embeddings_schema(dtype))


def test_an_image_that_the_model_cannot_embed_is_named_by_its_uri_too(model, monkeypatch):
    image = {"image": picture(0), IMAGE_URI: "a.jpg"}
    monkeypatch.setattr(model, "embed_images", lambda pixels: torch.full((len(pixels), model.embed_dim), torch.nan))
    result = embed(model, [image, {"image": picture(1), "caption": "a cat"}])
    assert [r["message"] for r in result.rejects.to_pylist()] == [
        "a.jpg: the model's embedding has NaN or infinite values",
        "the model's embedding has NaN or infinite values",
    ]


REJECT = {"reason": "not UTF-8", "message": "m", "num_bytes": 3}
ROWS = [
    {"image": picture(0), "caption": "a cat"},
    {"image": picture(1)},
    {"caption": "a dog"},
    {"image": b"broken", "caption": "a cow"},
    {"image": picture(4), "caption_reject": REJECT},
    {"image": b"", "caption_reject": REJECT},
    {},
]


def test_rows_rejects_and_absences_are_exactly_these(model):
    result = embed(model, ROWS)
    assert result.rows.schema.equals(embeddings_schema()) and result.rejects.schema.equals(rejects_schema())
    assert [
        (r["row"], r["image_embedding"] is not None, r["caption_embedding"] is not None, r["clip_score"] is not None)
        for r in result.rows.to_pylist()
    ] == [(10, 1, 1, 1), (11, 1, 0, 0), (12, 0, 1, 0), (13, 0, 1, 0), (14, 1, 0, 0)]
    assert [(r["row"], r["modality"], r["stage"], r["reason"], r["num_bytes"]) for r in result.rejects.to_pylist()] == [
        (13, "image", "decode", "unknown format", 6),
        (14, "caption", "read", "not UTF-8", 3),
        (15, "image", "decode", "empty", 0),
        (15, "caption", "read", "not UTF-8", 3),
    ]
    assert result.absent == {"image": 2, "caption": 2}
    assert all((r["stage"], r["reason"]) in REASONS for r in result.rejects.to_pylist())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_numbers_are_the_models_and_the_score_is_of_what_is_stored(model, dtype):
    rows = embed(model, ROWS, dtype).rows.to_pylist()
    images = model.embed_images(np.stack([decode_image(picture(i), 32) for i in (0, 1, 4)])).numpy()
    stored = np.array([rows[i]["image_embedding"] for i in (0, 1, 4)], np.float32)
    np.testing.assert_allclose(stored, images, atol=1e-6 if dtype == "float32" else 1e-3)
    np.testing.assert_array_equal(stored, stored.astype(dtype))
    a, b = (np.array(rows[0][f"{m}_embedding"], np.float32) for m in ("image", "caption"))
    assert rows[0]["clip_score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_an_embedding_that_is_not_finite_is_a_reject(model, monkeypatch):
    monkeypatch.setattr(model, "embed_images", lambda pixels: torch.full((len(pixels), model.embed_dim), torch.nan))
    result = embed(model, ROWS[:2])
    assert [(r["row"], r["reason"]) for r in result.rejects.to_pylist()] == [(10, "not finite"), (11, "not finite")]
    assert result.rows.num_rows == 1 and result.rows.column("image_embedding").null_count == 1


def test_a_shard_that_could_not_be_read_is_one_row():
    (row,) = shard_reject("s", "unreadable", "why").to_pylist()
    assert (row["key"], row["row"], row["modality"], row["reason"]) == (None, None, "shard", "unreadable")


@contextlib.contextmanager
def cramped(tower, room):
    """A tower on a device that fits `room` samples at a time."""
    seen = []

    def check(module, args):
        seen.append(args[0].clone())
        if len(args[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = tower.register_forward_pre_hook(check)
    try:
        yield seen
    finally:
        hook.remove()


NINE = [{"image": picture(i), "caption": f"picture number {i}"} for i in range(9)]


@pytest.mark.parametrize("room, halved", [(9, 0), (5, 1), (2, 4), (1, 8)])
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_loses_nothing(room, halved, model):
    whole = embed(model, NINE)
    with cramped(model.visual, room) as images, cramped(model.text, room) as captions:
        result = embed(model, NINE)
    assert result.rejects.num_rows == 0 and result.absent == {"image": 0, "caption": 0}
    assert sum(result.notes.values()) == 2 * halved and all("halved" in text for text in result.notes)
    assert len(images) == len(captions) == 1 + 2 * halved
    for ours, theirs in zip(result.rows.to_pylist(), whole.rows.to_pylist(), strict=True):
        for name in ("image_embedding", "caption_embedding"):
            np.testing.assert_allclose(ours.pop(name), theirs.pop(name), atol=1e-5)
        assert ours.pop("clip_score") == pytest.approx(theirs.pop("clip_score"), abs=1e-5)
        assert ours == theirs


def test_a_batch_that_overflows_in_fp16_is_noted_and_loses_nothing(tiny_checkpoint):
    half = load(tiny_checkpoint, "cpu", precision="fp16")
    half.visual.ln_post.weight *= 60_000
    half.visual.proj /= 60_000
    result = embed(half, NINE)
    assert result.rejects.num_rows == 0 and result.rows.column("image_embedding").null_count == 0
    assert result.notes == {"times that a batch did not fit into the range of fp16 and was embedded again in fp32": 1}


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_device_without_memory_for_a_single_sample_ends_the_run(tower, model):
    """All samples have one size, so this is the machine's fault, and every other sample would fail too."""
    with cramped(getattr(model, tower), 0) as tried, pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        embed(model, NINE)
    assert [len(batch) for batch in tried] == [9, 4, 2, 1]


def test_another_error_of_the_model_is_raised(model):
    def broken(module, args):
        raise RuntimeError("CUDA error: device-side assert triggered")

    hook = model.visual.register_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="device-side assert"):
            embed(model, NINE)
    finally:
        hook.remove()
