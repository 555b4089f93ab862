"""ClipModelHandler in Beam's own RunInference."""

import pickle

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from conftest import picture

from clip_transforms import ClipModelHandler, ClipSpec, clip
from clip_transforms.clip import ImageError

PICTURES = [picture(seed) for seed in range(5)]
CAPTIONS = ["a red square", "a blue circle on a white ground", "a red square"]


@pytest.fixture(scope="module")
def handler(tiny_checkpoint):
    return ClipModelHandler(ClipSpec(tiny_checkpoint, precision="fp32", device="cpu"), batch_size=4)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return clip.load(tiny_checkpoint, "cpu", precision="fp32")


def results_of(elements, handler, tmp_path):
    """[(element, inference)] of a pipeline on the in-process runner."""
    out = str(tmp_path / "results")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        results = pipeline | beam.Create(elements) | RunInference(handler)
        _ = results | beam.Map(lambda result: result) | beam.combiners.ToList() | beam.Map(_keep, out)
    with open(out, "rb") as file:
        return pickle.load(file)


def _keep(results, path):
    with open(path, "wb") as file:
        pickle.dump(results, file)


def test_pictures_and_captions_of_one_collection_are_embedded_as_by_the_model(handler, model, tmp_path):
    results = results_of([*PICTURES, *CAPTIONS], handler, tmp_path)
    found = {result.example: result.inference for result in results}
    assert len(results) == 8 and set(found) == {*PICTURES, *CAPTIONS}
    for data in PICTURES:
        expected = model.embed_images(model.decode_image(data))[0].numpy()
        assert found[data].dtype == np.float32 and found[data].shape == (48,)
        np.testing.assert_allclose(found[data], expected, atol=1e-6)
    for text in CAPTIONS:
        np.testing.assert_allclose(found[text], model.embed_captions(text)[0].numpy(), atol=1e-6)


def test_a_bad_picture_fails_its_own_element_and_not_its_batch(handler, tmp_path):
    broken = {b"": "empty", b"no picture": "unknown format", PICTURES[1][:300]: "truncated"}
    results = results_of([PICTURES[0], *broken, PICTURES[2], "a text"], handler, tmp_path)
    found = {result.example: result.inference for result in results}
    for data, reason in broken.items():
        assert isinstance(found[data], ImageError) and found[data].reason == reason and str(found[data])
    for whole in (PICTURES[0], PICTURES[2], "a text"):
        assert abs(np.linalg.norm(found[whole]) - 1) < 1e-5


def test_keyed_elements_keep_their_keys(handler, tmp_path):
    keyed = [(f"{place}.jpg", data) for place, data in enumerate(PICTURES)]
    results = dict(results_of(keyed, KeyedModelHandler(handler), tmp_path))
    assert {key: result.example for key, result in results.items()} == dict(keyed)


def test_batches_keep_their_order_may_lack_either_kind_and_are_counted_without_pickling(handler, model):
    batch = ["text", PICTURES[0], b"bad", "text"]
    found = list(handler.run_inference(batch, model))
    assert [result.example for result in found] == batch
    assert [type(result.inference) for result in found] == [np.ndarray, np.ndarray, ImageError, np.ndarray]
    for some in (PICTURES[:2], CAPTIONS, [b"bad"], []):
        assert len(list(handler.run_inference(some, model))) == len(some)
    assert handler.get_num_bytes([b"12345", "abc"]) == 8
    assert handler.batch_elements_kwargs()["max_batch_size"] == 4


def test_an_embedding_that_is_not_finite_is_an_error_of_its_element(handler, tiny_checkpoint):
    broken = clip.load(tiny_checkpoint, "cpu", precision="fp32")
    broken.text.token_embedding.weight.data[broken_token()] = float("nan")
    good, bad = handler.run_inference(["good", "bad"], broken)
    assert isinstance(good.inference, np.ndarray) and isinstance(bad.inference, ValueError)
    assert str(bad.inference) == "the model's embedding has NaN or infinite values"


def broken_token():
    return int(clip.Tokenizer().tokenize(["bad"], 77).ids[0][1])


def test_an_element_of_another_type_ends_the_run(handler, model):
    with pytest.raises(TypeError):
        list(handler.run_inference([3], model))


@pytest.mark.parametrize(("argument", "value"), [("model", "no-such-model"), ("batch_size", 0), ("batch_size", "many")])
def test_wrong_arguments_are_refused_when_the_handler_is_made(tiny_checkpoint, argument, value):
    with pytest.raises(ValueError, match=argument):
        ClipModelHandler(**{"model": tiny_checkpoint, argument: value})


def test_the_handler_can_be_pickled_and_holds_no_model(handler, model):
    sent = pickle.dumps(handler)
    assert len(sent) < 4096
    a, b = (list(some.run_inference(CAPTIONS, model)) for some in (handler, pickle.loads(sent)))
    assert all((x.inference == y.inference).all() for x, y in zip(a, b, strict=True))
