"""The caller of a model in this process, on its CPU or on a GPU."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from clip_transforms.clip.model import ClipModel
from clip_transforms.engine.calls import AT_ONCE, Embedded, new_room

_LOGGER = logging.getLogger(__name__)
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process


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

    def room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return memory for pixels; uint8 of a shape. A GPU copies faster from pinned memory."""
        if self.gpu is None:
            return new_room(shape)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()

    def claim_memory(self, method: str, inputs: np.ndarray) -> None:
        """Have as many calls under way as ever, and drop their results. On a CPU it does nothing.

        Raises:
            torch.cuda.OutOfMemoryError: if the GPU has no room for them.
        """
        if self.gpu is None:
            return
        under_way = [self.gpu.start(getattr(self.model, method), inputs) for _ in range(AT_ONCE)]
        for call in under_way:
            if call is None:
                raise torch.cuda.OutOfMemoryError(f"CUDA out of memory for {AT_ONCE} batches of {len(inputs)}")
            call.result()


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

    def pin(self, memory: np.ndarray) -> None:
        """Keep memory in place, so that batches in it are copied beside the computation; slower copies do without.

        Args:
            memory: uint8 [n]; `unpin` must come before it is freed.
        """
        self._tell_runtime("cudaHostRegister", memory.ctypes.data, memory.nbytes, _PORTABLE)

    def unpin(self, memory: np.ndarray) -> None:
        """Undo `pin`."""
        self._tell_runtime("cudaHostUnregister", memory.ctypes.data)

    def _tell_runtime(self, function: str, *arguments: int) -> None:
        if code := int(getattr(self._cuda.cudart(), function)(*arguments)):
            _LOGGER.debug("%s answers with error %d", function, code)

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
