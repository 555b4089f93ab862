"""A model that another process holds: it gives the same, two batches at a time. Only the messages are missing."""

import logging
import pickle
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from test_calls import Cuda
from test_forward import LONG, batch

from clip_transforms.clip.checkpoints import load
from clip_transforms.engine.caller import Caller, Gpu
from clip_transforms.engine.decode import DecodeAhead
from clip_transforms.engine.far_model import FarCaller, FarModel, Turns
from clip_transforms.engine.forward import Embedder, ForwardedBatch

BATCH = 4


@pytest.fixture
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


class Feeder:
    """Embeds with the model of a caller, as another process does."""

    def __init__(self, caller, delay=0.0):
        self.model = pickle.loads(pickle.dumps(FarModel.of(caller.model)))
        self.memory = bytearray(self.model.memory_bytes(BATCH))
        self.turns, self.delay, self.asked = Turns(caller), delay, []
        self.embedder = Embedder(self.model, BATCH, FarCaller(self.model, BATCH, self.memory, self.ask))

    def ask(self, request):
        self.asked.append(request)
        time.sleep(self.delay)
        return pickle.loads(pickle.dumps(self.turns.answer(self.memory, request)))


def forward(embedder, batches, seconds=None):
    preprocessing, room = embedder.model.preprocessing, embedder.caller.room
    stream = [*((0, rows) for rows in batches), "end"]
    decoded = DecodeAhead(stream, preprocessing, embedder.ceiling, 1, room=room)
    items = embedder.forward(decoded, Counter() if seconds is None else seconds)
    return [item for item in items if isinstance(item, ForwardedBatch)]


ROWS = [
    ([f"number {i}", LONG + "more " * 60, None, "x"], 3) for i in range(3)
]  # longer than the model takes, so that a batch of captions is as large as any
ROWS += [([None, None], 2), (["a", "b"], 0)]


def test_embeddings_are_those_of_the_model_itself(model):
    batches = [batch(*rows) for rows in ROWS]
    here = forward(Embedder(model, BATCH), batches)
    feeder = Feeder(Caller(model))
    there = forward(feeder.embedder, batches)
    assert len(there) == len(here) == 5
    for ours, theirs in zip(there, here, strict=True):
        assert np.array_equal(ours.images.embeddings, theirs.images.embeddings)
        assert np.array_equal(ours.captions.embeddings, theirs.captions.embeddings)
        assert ours.images.embeddings.dtype == np.float32 and ours.captions.embeddings.shape[1] == model.embed_dim
    assert {request.method for request in feeder.asked} == {"embed_images", "embed_tokens"}
    assert all(request.shape[0] for request in feeder.asked), "nobody is asked for nothing"


def test_the_largest_batches_fit_into_the_memory(model):
    far = FarModel.of(model)
    assert far.batch_bytes(BATCH) == BATCH * 3 * 32 * 32
    length = far.architecture.context_length
    small = pickle.loads(pickle.dumps(far))
    object.__setattr__(small.preprocessing, "side", 8)
    assert small.batch_bytes(BATCH) == BATCH * 4 * length, "tokens need more than such pictures"


def test_pixels_lie_where_they_are_seen_and_their_place_is_free_when_no_view_is_left(model):
    feeder = Feeder(Caller(model))
    caller = feeder.embedder.caller
    forward(feeder.embedder, [batch([f"number {i}"] * 2, images=2) for i in range(3)])
    copied = {request.start for request in feeder.asked if request.method == "embed_tokens"}
    lay = {request.start for request in feeder.asked if request.method == "embed_images"}
    assert copied == {0} and 0 not in lay, "only tokens are copied"
    places = len(feeder.memory) // caller.model.batch_bytes(BATCH) - 1
    rooms = [caller.room((BATCH, 3, 32, 32)) for _ in range(places)]
    for i in range(places):
        rooms[i][:] = i % 251
    assert all((rooms[i] == i % 251).all() for i in range(places)), "they do not overlap"
    late = caller.room((BATCH, 3, 32, 32))
    late[:] = 7
    expected = model.embed_images(late).numpy()
    assert np.array_equal(caller.embed("embed_images", late).embeddings, expected), "without a place it is copied"
    assert feeder.asked[-1].start == 0
    view, address = rooms[5][1:2][:, :1], rooms[5].ctypes.data
    rooms.clear()
    rooms += [caller.room((BATCH, 3, 32, 32)) for _ in range(places)]
    assert address not in [room.ctypes.data for room in rooms] and (view == 5).all(), "a view holds its place"
    del view
    rooms.clear()
    rooms += [caller.room((1, 3, 32, 32)) for _ in range(places)]
    assert address in [room.ctypes.data for room in rooms]


def test_what_was_halved_or_overflowed_is_told(model):
    def check(module, args):
        if len(args[0]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    embed = model.embed_images

    def overflow(pixels):
        model.overflows += 1
        return embed(pixels)

    model.embed_images = overflow
    hook = model.visual.register_forward_pre_hook(check)
    try:
        (found,) = forward(Feeder(Caller(model)).embedder, [batch([None] * 4, images=4)])
    finally:
        hook.remove()
    assert (found.images.halved, found.images.overflowed) == (1, 3), "the whole, and its halves"


def test_the_ceiling_counts_the_device_and_the_clock_all_of_the_waiting(model):
    feeder, seconds = Feeder(Caller(model), delay=0.2), Counter()
    forward(feeder.embedder, [batch([None, None], images=2)] * 3, seconds)
    assert seconds["forward"] > 0.6
    assert 0 < feeder.embedder.ceiling._seconds < 0.3, "two batches after the first"


class _Slow(Cuda):
    """Batches are done when the test says so."""

    def __init__(self):
        super().__init__()
        self.may_end, self.under_way, self.most = threading.Semaphore(0), 0, 0
        self.lock = threading.Lock()

    def current_stream(self, device):
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        return self

    def wait(self):
        assert self.may_end.acquire(timeout=20)
        with self.lock:
            self.under_way -= 1


def test_two_batches_are_under_way_however_many_feeders_there_are(model, monkeypatch):
    cuda, caller, answers = _Slow(), Caller(model), []
    caller.gpu = Gpu(torch.device("cpu"), cuda)
    monkeypatch.setattr("test_calls.Event.synchronize", lambda event: cuda.wait())
    turns = Turns(caller)
    pixels = np.zeros((2, 3, 32, 32), np.uint8)

    def ask():
        far = FarModel.of(model)
        memory = bytearray(far.memory_bytes(2))
        answers.append(
            FarCaller(far, 2, memory, lambda request: turns.answer(memory, request)).embed("embed_images", pixels)
        )

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while cuda.under_way < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert cuda.under_way == 2 and answers == []
    for _ in threads:
        cuda.may_end.release()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 5 and cuda.most == 2
    assert all(answer.seconds == 1.0 for answer in answers), "by the GPU's events"


class _Runtime(Cuda):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def cudart(self):
        return self

    def __getattr__(self, name):
        assert name in ("cudaHostRegister", "cudaHostUnregister")
        return lambda *arguments: self.log.append((name, *arguments)) or self.code


@pytest.mark.parametrize("code", [0, 2])
def test_memory_of_a_feeder_is_pinned_for_a_gpu_and_a_refusal_only_makes_it_slower(code, model, caplog):
    caplog.set_level(logging.DEBUG, "clip_transforms.engine.caller")
    cuda, caller = _Runtime(code), Caller(model)
    memory = bytearray(100)
    Turns(caller).share(memory)
    Turns(caller).free(memory)
    assert cuda.log == []
    caller.gpu = Gpu(torch.device("cpu"), cuda)
    turns = Turns(caller)
    turns.share(memory)
    turns.free(memory)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    assert cuda.log == [("cudaHostRegister", address, 100, 1), ("cudaHostUnregister", address)]
    assert len(caplog.records) == (2 if code else 0)
