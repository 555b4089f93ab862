"""Calls of the model. A CPU does each at once; a GPU has two under way, so that it never waits for Python."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from clip_transforms.clip.model import ClipModel

_AT_ONCE = 2  # calls under way on a GPU: while it does one, the next one waits there


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The embeddings of a batch's pictures or captions.

    Attributes:
        embeddings: float32 [m, d].
        halved: the number of times that a batch, or a piece of one, was halved to fit.
        overflowed: the number of times that one did not fit into the range of fp16 and was embedded again in fp32.
    """

    embeddings: np.ndarray
    halved: int = 0
    overflowed: int = 0

    def first(self, count: int) -> Embedded:
        """Return the first `count` embeddings."""
        return dataclasses.replace(self, embeddings=self.embeddings[:count])


class Caller:
    """A process's model. Threads take turns to call it, since some runners run many threads per process."""

    def __init__(self, model: ClipModel):
        """Build one for all threads of a process to share."""
        self.model = model
        self.lock = threading.Lock()
        self.gpu = Gpu(model.device) if model.device.type == "cuda" else None

    def embed(self, method: str, inputs: np.ndarray) -> Embedded:
        """Call a method of the model, in halves if the batch does not fit in the device's memory."""
        embed, before = getattr(self.model, method), self.model.overflows
        pieces = _InPieces(embed, self.model.embed_dim, inputs)
        return Embedded(pieces.embeddings, pieces.halved, self.model.overflows - before)

    def claim_memory(self, method: str, inputs: np.ndarray) -> None:
        """Have as many calls under way as ever, and drop their results. On a CPU it does nothing.

        Raises:
            torch.cuda.OutOfMemoryError: if the GPU has no room for them.
        """
        if self.gpu is None:
            return
        under_way = [self.gpu.start(getattr(self.model, method), inputs) for _ in range(_AT_ONCE)]
        for call in under_way:
            if call is None:
                raise torch.cuda.OutOfMemoryError(f"CUDA out of memory for {_AT_ONCE} batches of {len(inputs)}")
            call.result()


class Call:
    """A batch on its way through the model.

    Attributes:
        seconds: how long the device took for it, once there is a result.
    """

    def __init__(self, caller: Caller, method: str, inputs: np.ndarray, then: Callable[[Call], None]):
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
        self._under_way: _UnderWay | None = None
        if caller.gpu is not None and len(inputs):
            with caller.lock:
                self._under_way = caller.gpu.start(getattr(caller.model, method), inputs)
        if self._under_way is None:
            self._do_here()

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

    def __init__(self, caller: Caller, seconds: defaultdict[str, float]):
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
        while len(self._under_way) >= _AT_ONCE:
            self._under_way.popleft().result()
        call = Call(self._caller, method, inputs, self._count)
        if alone:
            call.result()
        else:
            self._under_way.append(call)
        return call

    def _count(self, call: Call) -> None:
        self._seconds["forward"] += call.seconds


class Gpu:
    """Sends batches to a GPU and fetches results, without waiting for it: copies go beside the computation."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda):
        """Make a stream for copies.

        Args:
            device: the GPU.
            cuda: what offers streams and events; a test may see their order in another one.
        """
        self._device, self._cuda = device, cuda
        self._copies = cuda.Stream(device)

    def start(self, embed: Callable[..., torch.Tensor], inputs: np.ndarray) -> _UnderWay | None:
        """Begin a call; None if the device's memory is full."""
        try:
            with self._cuda.stream(self._copies):
                there = torch.as_tensor(inputs).to(self._device, non_blocking=True)  # the pixels lie in pinned memory
            stream = self._cuda.current_stream(self._device)
            stream.wait_stream(self._copies)
            begun, done = (self._cuda.Event(enable_timing=True) for _ in range(2))
            begun.record(stream)
            found = embed(there, on_device=True).to("cpu", non_blocking=True)  # torch pins what it copies to
            done.record(stream)
        except torch.cuda.OutOfMemoryError:
            return None
        return _UnderWay(there, found, begun, done)


@dataclasses.dataclass(frozen=True)
class _UnderWay:
    """A call that a GPU may not have done yet; it holds the inputs, so that their memory is not used again before."""

    inputs: torch.Tensor
    found: torch.Tensor
    begun: Any
    done: Any

    def result(self) -> tuple[np.ndarray, float]:
        """Wait for the embeddings; float32 [n, d], and the seconds that the device took."""
        self.done.synchronize()
        return self.found.numpy(), self.begun.elapsed_time(self.done) / 1000


class _InPieces:
    """The embeddings of a batch, made at once or, if the device's memory runs out, from its halves.

    If not even one sample fits, the error goes up and ends the run. All samples of a model have the same size, so every
    other one would fail too: something else fills the device.
    """

    def __init__(self, embed: Callable[[np.ndarray], torch.Tensor], d: int, inputs: np.ndarray):
        self.embeddings = np.full((len(inputs), d), np.nan, np.float32)
        self.halved = 0
        waiting = [(0, len(inputs))] if len(inputs) else []
        while waiting:
            start, stop = waiting.pop()
            if self._fits(embed, inputs, start, stop):
                continue
            torch.cuda.empty_cache()  # does nothing without CUDA
            self.halved += 1
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]

    def _fits(self, embed: Callable[[np.ndarray], torch.Tensor], inputs: np.ndarray, start: int, stop: int) -> bool:
        try:
            self.embeddings[start:stop] = embed(inputs[start:stop]).numpy()
        except torch.cuda.OutOfMemoryError:
            if stop - start == 1:
                raise
            return False
        return True
