"""Pictures go through the model batch by batch, captions by length within a window; the order is kept."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from conftest import picture

from clip_transforms.clip.checkpoints import load
from clip_transforms.engine import forward as forward_module
from clip_transforms.engine.decode import DecodeAhead
from clip_transforms.engine.forward import Embedder, ForwardedBatch
from schemas.samples import samples_schema

SHORT, LONG = "a cat", "a long text about a cat and a dog and a cow that go for a walk " * 3


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


def batch(captions, images=0):
    rows = [
        {"key": str(i), "row": i, "caption": caption, **({"image": picture(i)} if i < images else {})}
        for i, caption in enumerate(captions)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=samples_schema())


class Watched:
    """A model that records its inputs."""

    def __init__(self, model):
        self._model = model
        self.calls = []

    def embed_images(self, pixels):
        self.calls.append(("images", len(pixels)))
        return self._model.embed_images(pixels)

    def embed_tokens(self, tokens):
        self.calls.append(("captions", tokens.shape))
        return self._model.embed_tokens(tokens)

    def __getattr__(self, name):
        return getattr(self._model, name)


def run(model, stream, batch_size=4):
    watched = Watched(model)
    embedder = Embedder(watched, batch_size)
    embedder.ceiling.measuring = False
    decoded = DecodeAhead(stream, model.preprocessing, embedder.ceiling, 2)
    return list(embedder.forward(decoded, Counter())), watched.calls


def test_every_caption_gets_its_own_embedding_whatever_the_order_of_the_lengths(model):
    captions = [[LONG, SHORT, f"number {i}", None, LONG + str(i), "x" * i] for i in range(1, 6)]
    out, _ = run(model, [*((0, batch(rows)) for rows in captions), "end"])
    assert out[-1] == "end" and [type(item) for item in out[:-1]] == [ForwardedBatch] * 5
    for item, rows in zip(out, captions, strict=False):
        wanted = model.embed_captions([text for text in rows if text is not None]).numpy()
        np.testing.assert_allclose(item.captions.embeddings, wanted, atol=1e-5)
        assert item.decoded.caption_rows == [0, 1, 2, 4, 5]


def test_a_stream_that_ends_without_a_mark_loses_nothing(model):
    out, _ = run(model, [(0, batch([SHORT, LONG])), (0, batch([LONG]))])
    assert [len(item.captions.embeddings) for item in out] == [2, 1]


def test_equal_captions_of_a_window_are_embedded_once(model):
    out, calls = run(model, [(0, batch([SHORT, SHORT, LONG])), (0, batch([LONG, SHORT])), "end"])
    assert sum(shape[0] for _, shape in calls) == 2
    assert np.array_equal(out[0].captions.embeddings[0], out[1].captions.embeddings[1])
    assert np.array_equal(out[0].captions.embeddings[2], out[1].captions.embeddings[0])


def test_captions_are_grouped_by_length_within_the_tokens_of_a_full_batch(model):
    captions = [f"{word} " * length for length in (1, 30, 2, 70, 1, 40) for word in ("red", "green", "blue", "big")]
    _, calls = run(model, [(0, batch(captions[:12])), (0, batch(captions[12:])), "end"], batch_size=4)
    shapes = [shape for _, shape in calls]
    assert sum(n for n, _ in shapes) == len(set(captions)) and all(n * t <= 4 * 77 for n, t in shapes)
    assert [t for _, t in shapes] == sorted(t for _, t in shapes)
    assert shapes[0][0] > 4, "many short captions form one group"


def test_a_group_that_is_large_enough_has_no_padding():
    lengths = [5] * 40 + [6] * 10 + [7] * 7 + [30] * 3
    groups = list(forward_module._by_length(lengths, 400))
    assert sorted(place for group in groups for place in group) == list(range(60))
    assert [sorted({lengths[place] for place in group}) for group in groups] == [[5], [6, 7], [30]]
    assert [len(group) for group in groups] == [40, 17, 3]


def test_a_window_ends_with_its_unit_so_that_a_unit_does_not_depend_on_the_others(model):
    one, two = batch([SHORT, LONG]), batch([SHORT, "a dog"])
    together, calls = run(model, [(0, one), "end of 0", (1, two), "end of 1"])
    alone, _ = run(model, [(1, two), "end of 1"])
    assert [item if isinstance(item, str) else item.unit for item in together] == [0, "end of 0", 1, "end of 1"]
    assert np.array_equal(together[2].captions.embeddings, alone[0].captions.embeddings)
    assert sum(shape[0] for _, shape in calls) == 4


def test_a_window_is_bounded_in_captions_and_in_bytes(model, monkeypatch):
    stream = [*((0, batch([f"{i} {j}" for j in range(10)], images=1)) for i in range(6)), "end"]
    monkeypatch.setattr(forward_module, "_WINDOW_CAPTIONS", 20)
    _, calls = run(model, stream, batch_size=32)
    assert [kind for kind, _ in calls] == ["images", "images", "captions"] * 3
    monkeypatch.setattr(forward_module, "_WINDOW_BYTES", 1)
    _, calls = run(model, stream, batch_size=32)
    assert [kind for kind, _ in calls] == ["images", "captions"] * 6


def test_pictures_without_captions_wait_for_nothing(model):
    embedder = Embedder(model, 4)
    decoded = DecodeAhead(
        [(0, batch([None], images=1)), (0, batch([None], images=1))], model.preprocessing, embedder.ceiling, 1
    )
    out = embedder.forward(decoded, Counter())
    first = next(out)
    assert first.images.embeddings.shape == (1, 48) and first.captions.embeddings.shape == (0, 48)
    assert "image" not in first.decoded.samples.schema.names, "encoded pictures are released"
    assert len(list(out)) == 1


@pytest.mark.parametrize("batch_size, expected", [(0, 32), (5, 5)])
def test_the_batch_size_is_the_devices_unless_it_is_given(model, batch_size, expected):
    assert Embedder(model, batch_size).batch_size == expected


def test_with_a_batch_size_of_one_an_embedding_depends_on_nothing_but_its_sample(model):
    captions = [LONG, SHORT, "number 1", None, SHORT, "number 2"]
    together, calls = run(model, [(0, batch(captions[i : i + 1], images=1)) for i in range(6)], batch_size=1)
    assert calls[:6] == [("images", 1)] * 6
    assert [shape[0] for kind, shape in calls[6:]] == [1] * 4, "equal captions go once"
    alone = [run(model, [(0, batch([caption], images=1))], batch_size=1)[0][0] for caption in captions]
    for one, other in zip(together, alone, strict=True):
        assert one.images.embeddings.tobytes() == other.images.embeddings.tobytes()
        assert one.captions.embeddings.tobytes() == other.captions.embeddings.tobytes()
