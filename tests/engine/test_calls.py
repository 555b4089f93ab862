"""A GPU has two batches under way; what it cannot do, or what overflows, is done again, and nothing is lost."""

import contextlib
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import picture
from test_forward import batch

from clip_transforms.clip.checkpoints import load
from clip_transforms.engine.caller import Caller, Gpu
from clip_transforms.engine.calls import Call
from clip_transforms.engine.decode import DecodeAhead
from clip_transforms.engine.forward import Embedder, ForwardedBatch


class Cuda:
    """Streams and events that write down their order. What is sent to this GPU is computed here, at once."""

    def __init__(self):
        self.log, self.recorded = [], 0
        self.Stream = lambda device: "copies"
        self.Event = lambda enable_timing: Event(self)

    def stream(self, stream):
        self.log.append("copy")
        return contextlib.nullcontext()

    def current_stream(self, device):
        return self

    def wait_stream(self, stream):
        self.log.append(f"after {stream}")


class Event:
    def __init__(self, cuda):
        self._cuda = cuda

    def record(self, stream):
        self._cuda.recorded += 1
        self.time = self._cuda.recorded
        self._cuda.log.append("record")

    def synchronize(self):
        self._cuda.log.append("wait")

    def elapsed_time(self, later):
        return 1000.0 * (later.time - self.time)


@pytest.fixture
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


def forward(model, batches, cuda=None, measuring=False):
    embedder = Embedder(model, 4)
    embedder.ceiling.measuring = measuring
    if cuda:
        embedder.caller.gpu = Gpu(torch.device("cpu"), cuda)
    seconds = Counter()
    decoded = DecodeAhead([*((0, rows) for rows in batches), "end"], model.preprocessing, embedder.ceiling, 1)
    found = [item for item in embedder.forward(decoded, seconds) if isinstance(item, ForwardedBatch)]
    return found, seconds, embedder


def test_a_gpu_has_the_next_batch_before_it_is_asked_for_the_last_one(model):
    cuda = Cuda()
    batches = [batch([f"number {i}", None], images=2) for i in range(4)]
    here, _, _ = forward(model, batches)
    found, seconds, _ = forward(model, batches, cuda)
    start = ["copy", "after copies", "record", "record"]
    # Four batches of pictures, then the captions of all in one; each waits for the one before the last.
    assert cuda.log == [*start, *start, "wait", *start, "wait", *start, "wait", *start, "wait", "wait"]
    assert seconds["forward"] == 5.0, "a second for each call, by the events"
    for ours, theirs in zip(found, here, strict=True):
        assert np.array_equal(ours.images.embeddings, theirs.images.embeddings)
        assert np.array_equal(ours.captions.embeddings, theirs.captions.embeddings)


def test_while_the_ceiling_is_measured_a_batch_is_alone_on_the_gpu(model):
    cuda = Cuda()
    batches = [batch([None, None], images=2) for _ in range(3)]
    _, _, embedder = forward(model, batches, cuda, measuring=True)
    assert cuda.log == ["copy", "after copies", "record", "record", "wait"] * 3
    assert embedder.ceiling._seconds == 2.0, "of three batches the first one is warm-up"


def test_what_a_full_gpu_does_not_take_is_halved_and_loses_nothing(model):
    cuda, room = Cuda(), 2

    def check(module, args):
        if len(args[0]) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    rows = [batch([None] * 4, images=4), batch([None] * 2, images=2)]
    here, _, _ = forward(model, rows)
    hook = model.visual.register_forward_pre_hook(check)
    try:
        found, _, _ = forward(model, rows, cuda)
    finally:
        hook.remove()
    assert [item.images.halved for item in found] == [1, 0]
    for ours, theirs in zip(found, here, strict=True):
        np.testing.assert_allclose(ours.images.embeddings, theirs.images.embeddings, atol=1e-5)


@pytest.mark.parametrize("room, tower", [(4, None), (3, "visual"), (3, "text")], ids=["enough", "pictures", "captions"])
def test_memory_is_claimed_by_two_whole_batches_of_each_kind_and_never_by_halves(room, tower, model):
    cuda, seen = Cuda(), []
    embedder = Embedder(model, 4)
    embedder.claim_memory()
    embedder.caller.gpu = Gpu(torch.device("cpu"), cuda)

    def check(module, args):
        seen.append(tuple(args[0].shape))
        if module is getattr(model, tower or "visual") and len(args[0]) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hooks = [each.register_forward_pre_hook(check) for each in (model.visual, model.text)]
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError) if tower else contextlib.nullcontext():
            embedder.claim_memory()
    finally:
        for hook in hooks:
            hook.remove()
    pixels, tokens = [(4, 3, 32, 32)] * 2, [(4, 77)] * 2
    assert seen == (pixels if tower == "visual" else [*pixels, *tokens])
    if tower is None:
        start = ["copy", "after copies", "record", "record"]
        assert cuda.log == [*start, *start, "wait", "wait"] * 2


@pytest.mark.parametrize("cuda", [None, Cuda()], ids=["cpu", "gpu"])
def test_a_call_that_is_done_holds_no_pixels(cuda, model):
    caller = Caller(model)
    caller.gpu = cuda and Gpu(torch.device("cpu"), cuda)
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    alive = weakref.ref(pixels)
    call = Call(caller, "embed_images", pixels, lambda call: None)
    del pixels
    assert call.result().embeddings.shape == (2, 48) and alive() is None


@pytest.mark.parametrize("cuda", [None, Cuda()], ids=["cpu", "gpu"])
def test_a_batch_that_overflows_in_fp16_is_embedded_again_in_fp32_and_counted(cuda, tiny_checkpoint, model):
    half = load(tiny_checkpoint, "cpu", precision="fp16")
    batches = [batch(["a cat"], images=1), batch(["a dog", "a cow"], images=2)]
    assert [item.images.overflowed for item in forward(half, batches, cuda)[0]] == [0, 0]

    # A larger last norm and as much smaller a projection: the same function, whose middle is out of range.
    for each in (half, model):
        each.visual.ln_post.weight *= 60_000
        each.visual.ln_post.bias *= 60_000
        each.visual.proj /= 60_000
    found, _, embedder = forward(half, batches, cuda)
    exact, _, _ = forward(model, batches)
    assert [item.images.overflowed for item in found] == [1, 1] and embedder.model.overflows == 2
    assert [item.captions.overflowed for item in found] == [0, 0]
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.images.embeddings * theirs.images.embeddings).sum(axis=1).min() > 0.999
        assert not np.array_equal(ours.images.embeddings, theirs.images.embeddings), "the weights are those of fp16"


def test_weights_that_are_not_finite_give_no_finite_embedding_in_any_precision(tiny_checkpoint):
    half = load(tiny_checkpoint, "cpu", precision="fp16")
    half.visual.proj[0, 0] = torch.nan
    found = half.embed_images(np.stack([half.decode_image(picture(0))]))
    assert found.isnan().any() and half.overflows == 1 and half.precision == "fp16"
