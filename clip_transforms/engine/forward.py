"""Run decoded batches through the model: pictures batch by batch, captions by length within a window of batches."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from clip_transforms.clip.model import ClipModel
from clip_transforms.engine.ceiling import Ceiling
from clip_transforms.engine.decode import DecodedBatch

_BATCH_SIZES = {"cpu": 32, "cuda": 256}
_WINDOW_CAPTIONS = 2048
_WINDOW_BYTES = 32 << 20  # of the window's samples, without their pictures


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The embeddings of a batch's pictures or captions.

    Attributes:
        embeddings: float32 [m, d].
        halved: the number of times that a batch, or a piece of one, was halved to fit.
    """

    embeddings: np.ndarray
    halved: int

    def first(self, count: int) -> Embedded:
        """Return the first `count` embeddings."""
        return Embedded(self.embeddings[:count], self.halved)


@dataclasses.dataclass(frozen=True)
class ForwardedBatch:
    """A batch with its embeddings.

    Attributes:
        unit: the index of the batch's unit in the task.
        decoded: the batch, without pixels and encoded images, which are no longer needed.
        images, captions: the embeddings of the pictures, and of the captions in the order of their tokens.
    """

    unit: int
    decoded: DecodedBatch
    images: Embedded
    captions: Embedded

    @property
    def num_bytes(self) -> int:
        """The approximate size in memory, in bytes."""
        return self.decoded.samples.nbytes + self.images.embeddings.nbytes + self.captions.embeddings.nbytes


class Embedder:
    """A process's model, with a lock around its forward pass, since some runners run many threads per process."""

    def __init__(self, model: ClipModel, batch_size: int = 0):
        """Build one for all threads of a process to share.

        Args:
            model: the loaded model.
            batch_size: the number of pictures in a forward pass. Captions are grouped up to the number of tokens in
                this many captions of full length. 0 chooses by the model's device.
        """
        self.model = model
        self.batch_size = batch_size or _BATCH_SIZES[model.device.type]
        self.ceiling = Ceiling()
        self._lock = threading.Lock()

    def forward(self, items: Iterable[Any], seconds: defaultdict[str, float]) -> Iterator[Any]:
        """Embed a stream of decoded batches.

        Args:
            items: DecodedBatch, and other items that are passed through in order, such as the mark of a unit's end. A
                window of captions never extends past such a mark, so a unit's embeddings do not depend on the units
                after it.
            seconds: gets the `forward` seconds.
        Yields:
            ForwardedBatch, and the other items, in the same order.
        """
        window: list[tuple[DecodedBatch, Embedded]] = []
        for item in items:
            if isinstance(item, DecodedBatch):
                window.append((_without_images(item), self.embed_images(item, seconds)))
                item = None
                if not _is_full([batch for batch, _ in window]):
                    continue
            yield from self._close(window, seconds)
            window = []
            if item is not None:
                yield item
        yield from self._close(window, seconds)

    def _close(
        self, window: list[tuple[DecodedBatch, Embedded]], seconds: defaultdict[str, float]
    ) -> Iterator[ForwardedBatch]:
        captions = self.embed_captions([batch for batch, _ in window], seconds)
        for (batch, images), embedded in zip(window, captions, strict=True):
            yield ForwardedBatch(batch.unit, batch, images, embedded)

    def embed_images(self, batch: DecodedBatch, seconds: defaultdict[str, float]) -> Embedded:
        """Embed a batch's pictures, in halves if they do not fit in the device's memory."""
        with self._timed(seconds) as took:
            pieces = _InPieces(self.model.embed_images, self.model.embed_dim, batch.pixels)
        self.ceiling.add(batch.samples.num_rows, len(batch.pixels), took.seconds)
        return Embedded(pieces.embeddings, pieces.halved)

    def embed_captions(self, batches: Sequence[DecodedBatch], seconds: defaultdict[str, float]) -> list[Embedded]:
        """Embed the captions of several batches: equal captions once, and captions of similar length together.

        This keeps padding low.
        """
        rows = [ids[:length] for b in batches for ids, length in zip(b.tokens.ids, b.tokens.lengths, strict=True)]
        places: dict[bytes, int] = {}
        of_row = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows], int)
        distinct = [np.frombuffer(row, np.int32) for row in places]
        found = np.empty((len(distinct), self.model.embed_dim), np.float32)
        halved = 0
        with self._timed(seconds) as took:
            for chosen in self._groups([len(row) for row in distinct]):
                tokens = _padded([distinct[place] for place in chosen])
                pieces = _InPieces(self.model.embed_tokens, self.model.embed_dim, tokens)
                found[chosen] = pieces.embeddings
                halved += pieces.halved
        self.ceiling.add_captions(sum(batch.samples.num_rows for batch in batches), took.seconds)
        edges = np.cumsum([0, *(len(batch.tokens.ids) for batch in batches)])
        result = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            result.append(Embedded(found[of_row[start:stop]], halved))
            halved = 0  # counted for the window's first batch only
        return result

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of captions of these lengths in the groups that go through the model together."""
        if self.batch_size == 1:
            # Alone, like each picture: the last bits of an embedding depend on the shape of its batch.
            return ([place] for place in range(len(lengths)))
        return _by_length(lengths, self.batch_size * self.model.architecture.context_length)

    def _timed(self, seconds: defaultdict[str, float]) -> _Forward:
        return _Forward(self._lock, seconds)


class _Forward:
    """A context in which one thread has the model to itself; it counts the seconds, except those of the wait."""

    def __init__(self, lock: threading.Lock, counted: defaultdict[str, float]):
        self._lock, self._counted = lock, counted
        self.seconds = 0.0

    def __enter__(self) -> _Forward:
        self._lock.acquire()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self._start
        self._lock.release()
        self._counted["forward"] += self.seconds


def _without_images(batch: DecodedBatch) -> DecodedBatch:
    return dataclasses.replace(batch, samples=batch.samples.drop_columns(["image"]), pixels=batch.pixels[:0].copy())


def _is_full(window: Sequence[DecodedBatch]) -> bool:
    captions = sum(len(batch.tokens.ids) for batch in window)
    held = sum(batch.samples.nbytes for batch in window)
    return captions == 0 or captions >= _WINDOW_CAPTIONS or held >= _WINDOW_BYTES


def _by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the indices of `lengths`, shortest first, in groups of at most `most` tokens, including padding.

    Once a group is large enough to keep the device busy, with a quarter of `most`, it takes no longer captions. This
    keeps padding low.
    """
    group: list[int] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        shortest = lengths[group[0]] if group else 0
        is_busy = len(group) * shortest >= most // 4
        if group and ((len(group) + 1) * lengths[place] > most or (is_busy and lengths[place] > shortest)):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack rows of tokens to int32 [n, t], padded with zeros to the longest row."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = row
    return ids


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
