"""A model that another process holds: batches go there through shared memory, and embeddings come back.

The process that has no model is a feeder. It reads, decodes and writes; nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.preprocess import Preprocessing
from clip_transforms.engine.calls import AT_ONCE, Call, CallsModel, Embedded, new_room
from clip_transforms.engine.decode import MAX_AHEAD_BYTES

_TOKEN_BYTES = 4


class Request(NamedTuple):
    """A batch that lies in shared memory.

    Attributes:
        method: `embed_images` or `embed_tokens`.
        start: its first byte there.
        shape: its shape.
        dtype: its type, as NumPy writes it.
    """

    method: str
    start: int
    shape: tuple[int, ...]
    dtype: str


class FarDevice(NamedTuple):
    """The device of a model in another process; `cpu` or `cuda`."""

    type: str


@dataclasses.dataclass(frozen=True)
class FarModel:
    """What a feeder knows of the model. The attributes are those of `ClipModel`."""

    architecture: Architecture
    preprocessing: Preprocessing
    precision: str
    device: FarDevice

    @classmethod
    def of(cls, model: Any) -> FarModel:
        """Describe a `ClipModel`."""
        return cls(model.architecture, model.preprocessing, model.precision, FarDevice(model.device.type))

    @property
    def embed_dim(self) -> int:
        """d, the length of an embedding."""
        return self.architecture.embed_dim

    def batch_bytes(self, batch_size: int) -> int:
        """Return the most bytes that a batch of so many samples takes, as pixels or as tokens."""
        return batch_size * max(3 * self.preprocessing.side**2, _TOKEN_BYTES * self.architecture.context_length)

    def memory_bytes(self, batch_size: int) -> int:
        """Return the size of the memory that a feeder shares: for the batches that wait, and those under way."""
        return (1 + _places(self.batch_bytes(batch_size))) * self.batch_bytes(batch_size)


def _places(batch_bytes: int) -> int:
    """Return the number of batches of pixels that may be in memory at the same time."""
    return MAX_AHEAD_BYTES // batch_bytes + 3  # besides those that wait: one for the decoders, one to come, one to go


class FarCaller:
    """Calls the model of another process. It sends one batch at a time.

    Pixels are decoded into places of the shared memory. A place is free again when nothing refers to its pixels. What
    lies elsewhere, as tokens do, is copied to the first place.
    """

    gpu = None  # the other process's

    def __init__(self, model: FarModel, batch_size: int, memory: Any, ask: Callable[[Request], Embedded]):
        """Build one for all threads of a process to share.

        Args:
            model: the model.
            batch_size: the largest number of pictures in a batch.
            memory: a buffer that both processes see, of `memory_bytes`.
            ask: sends a request, and waits for the answer.
        """
        self.model, self.lock = model, threading.Lock()
        self._ask, self._memory = ask, memory
        self._first = np.frombuffer(memory, np.uint8).ctypes.data
        size = model.batch_bytes(batch_size)
        self._free = [size * (1 + place) for place in reversed(range(_places(size)))]

    def room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return memory for the pixels of a batch; uint8 of a shape. It is not shared if there is no place left."""
        try:
            start = self._free.pop()  # the last one that became free may still be in a cache
        except IndexError:
            return new_room(shape)
        # NumPy lets a view of a view refer to what both are views of. So this, and no array, tells when all are gone.
        place = (ctypes.c_uint8 * math.prod(shape)).from_buffer(self._memory, start)
        weakref.finalize(place, self._free.append, start).atexit = False
        return np.ctypeslib.as_array(place).reshape(shape)

    def embed(self, method: str, inputs: np.ndarray) -> Embedded:
        """Have a batch embedded; float32 [n, d]."""
        if not len(inputs):
            return Embedded(np.empty((0, self.model.embed_dim), np.float32))
        start = inputs.ctypes.data - self._first
        is_there = 0 <= start < len(self._memory) and inputs.flags.c_contiguous
        request = Request(method, start if is_there else 0, inputs.shape, inputs.dtype.str)
        if not is_there:
            _seen(self._memory, request)[:] = inputs
        return self._ask(request)


class Turns:
    """The model's process: it answers all feeders, and has as many batches under way as if it fed itself."""

    def __init__(self, caller: CallsModel):
        """Answer with this caller's model."""
        self._caller, self._turns = caller, threading.BoundedSemaphore(AT_ONCE)

    def share(self, memory: Any) -> None:
        """Prepare memory that a feeder will put its batches into."""
        if self._caller.gpu is not None:
            self._caller.gpu.pin(np.frombuffer(memory, np.uint8))

    def free(self, memory: Any) -> None:
        """Undo `share`, before the memory is freed."""
        if self._caller.gpu is not None:
            self._caller.gpu.unpin(np.frombuffer(memory, np.uint8))

    def answer(self, memory: Any, request: Request) -> Embedded:
        """Embed the batch in a feeder's memory. Several threads call this, one for each feeder.

        Raises:
            Exception: what the model raises.
        """
        with self._turns:
            call = Call(self._caller, request.method, _seen(memory, request), lambda _: None)
            return dataclasses.replace(call.result(), seconds=call.seconds)


def _seen(memory: Any, request: Request) -> np.ndarray:
    """Return the batch in the memory, as it lies there."""
    return np.ndarray(request.shape, request.dtype, memory, request.start)
