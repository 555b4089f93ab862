"""Calls of a model, by its caller: a CPU does each at once; a GPU has two under way and never waits for Python."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

AT_ONCE = 2  # calls under way on a GPU: while it does one, the next one waits there


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The embeddings of a batch's pictures or captions.

    Attributes:
        embeddings: float32 [m, d].
        halved: the number of times that a batch, or a piece of one, was halved to fit.
        overflowed: the number of times that one did not fit into the range of fp16 and was embedded again in fp32.
        seconds: how long the device took, if another process has waited for it; else None.
    """

    embeddings: np.ndarray
    halved: int = 0
    overflowed: int = 0
    seconds: float | None = None

    def first(self, count: int) -> Embedded:
        """Return the first `count` embeddings."""
        return dataclasses.replace(self, embeddings=self.embeddings[:count])


def new_room(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory of this process for pixels; uint8 of a shape."""
    return np.empty(shape, np.uint8)


class CallsModel(Protocol):
    """What calls a model: `caller.Caller`, or `far_model.FarCaller` for a model that another process holds.

    Attributes:
        lock: held while the model is called.
        model: the model.
        gpu: the GPU that this process sends batches to, if it does; a `caller.Gpu`.
    """

    lock: threading.Lock
    model: Any
    gpu: Any

    def embed(self, method: str, inputs: np.ndarray) -> Embedded:
        """Call a method of the model, and wait for the result."""

    def room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return memory from which the model gets pixels fastest; uint8 of a shape."""


class Call:
    """A batch on its way through the model.

    Attributes:
        seconds: how long it took, once there is a result: the device, or all that went on in another process.
    """

    def __init__(self, caller: CallsModel, method: str, inputs: np.ndarray, then: Callable[[Call], None]):
        """Begin; on a CPU, do it.

        Args:
            caller: the model.
            method: `embed_images` or `embed_tokens`.
            inputs: pixels or tokens of a batch.
            then: is called with this object as soon as there is a result.
        """
        self.seconds = 0.0
        self._caller, self._method, self._inputs, self._then = caller, method, inputs, then
        self._result: Embedded | None = None
        self._under_way: Any = None
        if caller.gpu is not None and len(inputs):
            with caller.lock:
                self._under_way = caller.gpu.start(getattr(caller.model, method), inputs)
        if self._under_way is None:
            self._do_here()

    @property
    def device_seconds(self) -> float:
        """How long the device took, once there is a result."""
        assert self._result is not None
        return self.seconds if self._result.seconds is None else self._result.seconds

    def result(self) -> Embedded:
        """Wait for the embeddings."""
        if self._result is None:
            assert self._under_way is not None
            found, self.seconds = self._under_way.result()
            self._under_way = None
            if np.isfinite(found).all():
                self._finish(Embedded(found))
            else:
                self._do_here()  # the model sees to what does not fit into fp16
        assert self._result is not None
        return self._result

    def _do_here(self) -> None:
        with self._caller.lock:
            start = time.perf_counter()
            result = self._caller.embed(self._method, self._inputs)
            self.seconds += time.perf_counter() - start
        self._finish(result)

    def _finish(self, result: Embedded) -> None:
        self._result, self._inputs = result, self._inputs[:0].copy()  # the pixels are no longer needed
        self._then(self)


class Calls:
    """The calls of one stream of batches, in their order."""

    def __init__(self, caller: CallsModel, seconds: defaultdict[str, float]):
        """Begin with none.

        Args:
            caller: the model.
            seconds: gets the `forward` seconds.
        """
        self._caller, self._seconds = caller, seconds
        self._under_way: deque[Call] = deque()

    def start(self, method: str, inputs: np.ndarray, alone: bool = False) -> Call:
        """Begin a call, and wait for older ones while too many are under way.

        Args:
            method: `embed_images` or `embed_tokens`.
            inputs: pixels or tokens of a batch.
            alone: whether to wait for this call too.
        """
        while len(self._under_way) >= AT_ONCE:
            self._under_way.popleft().result()
        call = Call(self._caller, method, inputs, self._count)
        if alone:
            call.result()
        else:
            self._under_way.append(call)
        return call

    def _count(self, call: Call) -> None:
        self._seconds["forward"] += call.seconds
