"""All captions of a batch: each ends in exactly one place, and they go through the model together."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import picture

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.engine import forward as forward_module
from clip_transforms.engine.decode import DecodeAhead
from clip_transforms.engine.forward import Embedder
from clip_transforms.engine.rows import finish_batch
from schemas.captions import captions_schema
from schemas.embeddings import embeddings_schema
from schemas.rejects import REASONS
from schemas.samples import ALL_CAPTIONS, NUM_CAPTIONS, samples_schema

LATIN = {"reason": "not UTF-8", "message": "m", "num_bytes": 3}
NUMBER = {"reason": "not text", "message": "the caption is 7", "num_bytes": None}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


def samples(*rows):
    """Make a batch of (image or None, captions, number of captions at the source); a caption is a text or a reject."""
    found = []
    for i, (image, captions, number) in enumerate(rows):
        entries = [{"caption": c} if isinstance(c, str) else {"reject": c} for c in captions]
        first = {"caption": None, "reject": None} | (entries[0] if entries else {})
        fields = {"key": f"k{i}", "row": 10 + i, "image": image, ALL_CAPTIONS: entries or None, NUM_CAPTIONS: number}
        found.append(fields | {"caption": first["caption"], "caption_reject": first["reject"]})
    return pa.RecordBatch.from_pylist(found, schema=samples_schema(captions="all"))


def embed(model, *rows, dtype="float32"):
    embedder = Embedder(model)
    decoded = DecodeAhead([(0, samples(*rows)), "end"], model.preprocessing, embedder.ceiling, 2)
    batch, _ = embedder.forward(decoded, Counter())
    return finish_batch(batch, "s", embeddings_schema(dtype), captions_schema(dtype))


ROWS = [
    (picture(0), ["a cat", LATIN, "a dog", NUMBER], 4),
    (None, [LATIN, "a cow"], 2),
    (picture(2), [], None),
    (None, ["a", "b", "c"], 8),
    (None, ["a", NUMBER], 5),
]


def test_rows_rejects_and_counts_are_exactly_these(model):
    result = embed(model, *ROWS)
    found = result.captions
    assert found.rows.schema.equals(captions_schema())
    assert [(r["key"], r["row"], r["caption_index"], r["caption"]) for r in found.rows.to_pylist()] == [
        ("k0", 10, 0, "a cat"),
        ("k0", 10, 2, "a dog"),
        ("k1", 11, 1, "a cow"),
        *(("k3", 13, i, text) for i, text in enumerate("abc")),
        ("k4", 14, 0, "a"),
    ]
    assert [r["clip_score"] is not None for r in found.rows.to_pylist()] == [True] * 2 + [False] * 5
    assert found.rejected == Counter({"read: not UTF-8": 2, "read: not text": 2, "read: too many captions": 8})
    assert found.rows.num_rows + found.rejected.total() == sum(number or 0 for *_, number in ROWS)
    assert [(r["row"], r["modality"], r["reason"], r["num_bytes"]) for r in result.rejects.to_pylist()] == [
        (10, "captions", "not UTF-8", 3),
        (11, "caption", "not UTF-8", 3),
        (13, "captions", "too many captions", None),
        (14, "captions", "not text", None),
    ]
    assert [r["message"] for r in result.rejects.to_pylist()] == [
        "2 of 4 captions; the first is caption_index 1: m",
        "m",
        "5 of 8 captions; the first is caption_index 3: a sample may have at most 3 captions",
        "4 of 5 captions; the first is caption_index 1: the caption is 7",
    ]
    assert all((r["stage"], r["reason"]) in REASONS for r in result.rejects.to_pylist())
    assert result.absent == {"image": 3, "caption": 1}
    assert [row["row"] for row in result.rows.to_pylist()] == [10, 12, 13, 14]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_first_caption_has_the_numbers_of_its_row_and_every_score_is_of_what_is_stored(model, dtype):
    result = embed(model, *ROWS, dtype=dtype)
    captions, rows = result.captions.rows.to_pylist(), {row["row"]: row for row in result.rows.to_pylist()}
    for caption in captions:
        row = rows.get(caption["row"])
        if caption["caption_index"] == 0:
            for name in ("caption", "caption_tokens", "caption_truncated", "caption_embedding", "clip_score"):
                assert caption[name] == row[name], name
        if caption["clip_score"] is not None:
            a, b = (np.array(x, np.float32) for x in (row["image_embedding"], caption["caption_embedding"]))
            assert caption["clip_score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    wanted = model.embed_captions([caption["caption"] for caption in captions]).numpy()
    found = np.array([caption["caption_embedding"] for caption in captions], np.float32)
    np.testing.assert_allclose(found, wanted, atol=1e-6 if dtype == "float32" else 1e-3)


def test_a_further_caption_that_the_model_cannot_embed_is_a_reject(model, monkeypatch):
    original = model.embed_tokens
    dog = original(default_tokenizer().tokenize(["a dog"], 77).ids)

    def without_dogs(tokens):
        found = original(tokens).clone()
        found[torch.isclose(found, dog, atol=1e-4).all(dim=1)] = torch.nan
        return found

    monkeypatch.setattr(model, "embed_tokens", without_dogs)
    result = embed(model, (picture(0), ["a cat", "a dog", "a cow"], 3), (None, ["a cow", NUMBER, "a dog"], 3))
    texts = [(r["row"], r["caption_index"], r["caption"]) for r in result.captions.rows.to_pylist()]
    assert texts == [(10, 0, "a cat"), (10, 2, "a cow"), (11, 0, "a cow")]
    assert result.captions.rejected == Counter({"embed: not finite": 2, "read: not text": 1})
    found = [(r["row"], r["modality"], r["stage"], r["reason"]) for r in result.rejects.to_pylist()]
    assert found == [(10, "captions", "embed", "not finite"), (11, "captions", "read", "not text")]
    assert [r["message"] for r in result.rejects.to_pylist()] == [
        "1 of 3 captions; the first is caption_index 1: the model's embedding has NaN or infinite values",
        "2 of 3 captions; the first is caption_index 1: the caption is 7",
    ]
    assert (result.absent, result.rows.num_rows) == ({"image": 1, "caption": 0}, 2)


class Watched:
    """A model that records the shapes of the tokens that it embeds."""

    def __init__(self, model):
        self._model, self.calls = model, []

    def embed_tokens(self, tokens):
        self.calls.append(tokens.shape)
        return self._model.embed_tokens(tokens)

    def __getattr__(self, name):
        return getattr(self._model, name)


def run(model, stream):
    watched = Watched(model)
    embedder = Embedder(watched, 32)
    embedder.ceiling.measuring = False
    return list(
        embedder.forward(DecodeAhead(stream, model.preprocessing, embedder.ceiling, 2), Counter())
    ), watched.calls


def test_equal_captions_are_embedded_once_whether_they_are_first_or_not(model):
    batch = samples((picture(0), ["a cat", "a dog", "a cat"], 3), (picture(1), ["a dog", "a cow"], 2))
    (out, _), calls = run(model, [(0, batch), "end"])
    assert sum(n for n, _ in calls) == 3 and out.captions.embeddings.shape == (5, 48)
    assert out.decoded.further == [(0, 1), (0, 2), (1, 1)]


def test_a_window_counts_the_further_captions_too(model, monkeypatch):
    monkeypatch.setattr(forward_module, "_WINDOW_CAPTIONS", 20)
    stream = [(0, samples((None, [f"{i} {j}" for j in range(10)], 10))) for i in range(6)]
    _, calls = run(model, [*stream, "end"])
    assert [n for n, _ in calls] == [20, 20, 20]


def test_what_waits_for_the_model_or_the_writer_is_measured_with_all_captions(model):
    one, five = samples((None, ["a"], 1)), samples((None, ["a", "b", "c", "d", "e"], 5))
    decoders = DecodeAhead([], model.preprocessing, Embedder(model).ceiling, 1)
    tokens = 4 * 77 * 4
    assert decoders._size((0, five)) - decoders._size((0, one)) == five.nbytes - one.nbytes + tokens
    (first, _), _ = run(model, [(0, one), "end"])
    (second, _), _ = run(model, [(0, five), "end"])
    assert second.num_bytes - first.num_bytes >= 4 * 48 * 4
