"""Run decoded batches through the model: pictures batch by batch, captions by length within a window of batches."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_transforms.clip.model_spec import BATCH_SIZES
from clip_transforms.engine.calls import Call, Calls, CallsModel, Embedded
from clip_transforms.engine.ceiling import Ceiling
from clip_transforms.engine.decode import DecodedBatch

_WINDOW_CAPTIONS = 2048
_WINDOW_BYTES = 32 << 20  # of the window's samples, without their pictures


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
    """A process's model, and how it is fed.

    Attributes:
        feeders: processes that feed it; a `run.feeders.Feeders`, or None.
    """

    def __init__(self, model: Any, batch_size: int = 0, caller: CallsModel | None = None):
        """Build one for all threads of a process to share.

        Args:
            model: the loaded `ClipModel`, or the `FarModel` that stands for another process's.
            batch_size: the number of pictures in a forward pass. Captions are grouped up to the number of tokens in
                this many captions of full length. 0 chooses by the model's device.
            caller: what calls the model; by default a `Caller`.
        """
        if caller is None:
            from clip_transforms.engine.caller import Caller  # not at the top: a feeder needs no torch

            caller = Caller(model)
        self.model = model
        self.batch_size = batch_size or BATCH_SIZES[model.device.type]
        self.ceiling = Ceiling()
        self.caller: Any = caller
        self.feeders: Any = None

    def claim_memory(self) -> None:
        """Put as many whole batches through the model as are under way on a GPU; their memory stays with this process.

        Raises:
            torch.cuda.OutOfMemoryError: if the GPU has no room for them, so that batches would have to be halved.
        """
        side, length = self.model.image_side, self.model.architecture.context_length
        pixels = np.zeros((self.batch_size, 3, side, side), np.uint8)
        self.caller.claim_memory("embed_images", pixels)
        self.caller.claim_memory("embed_tokens", np.zeros((self.batch_size, length), np.int32))

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
        calls = Calls(self.caller, seconds)
        window: list[tuple[DecodedBatch, Call]] = []
        captions = held = 0
        for item in items:
            if isinstance(item, DecodedBatch):
                window.append((_without_images(item), self._start_images(item, calls)))
                captions += len(item.tokens.ids)
                held += window[-1][0].samples.nbytes
                item = None
                if 0 < captions < _WINDOW_CAPTIONS and held < _WINDOW_BYTES:
                    continue
            yield from self._close(window, calls)
            window = []
            captions = held = 0
            if item is not None:
                yield item
        yield from self._close(window, calls)

    def _close(self, window: list[tuple[DecodedBatch, Call]], calls: Calls) -> Iterator[ForwardedBatch]:
        captions = self._embed_captions([batch for batch, _ in window], calls)
        for (batch, images), embedded in zip(window, captions, strict=True):
            yield ForwardedBatch(batch.unit, batch, images.result(), embedded)

    def _start_images(self, batch: DecodedBatch, calls: Calls) -> Call:
        """Begin to embed a batch's pictures. While the ceiling is measured, nothing else may be under way."""
        samples, pictures, alone = batch.samples.num_rows, len(batch.pixels), self.ceiling.measuring
        call = calls.start("embed_images", batch.pixels, alone)
        self.ceiling.add(samples, pictures, call.device_seconds if alone else 0.0)
        return call

    def _embed_captions(self, batches: Sequence[DecodedBatch], calls: Calls) -> list[Embedded]:
        """Embed the captions of several batches: equal captions once, and captions of similar length together.

        This keeps padding low.
        """
        rows = [ids[:length] for b in batches for ids, length in zip(b.tokens.ids, b.tokens.lengths, strict=True)]
        places: dict[bytes, int] = {}
        of_row = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows], int)
        distinct = [np.frombuffer(row, np.int32) for row in places]
        found = np.empty((len(distinct), self.model.embed_dim), np.float32)
        groups = list(self._groups([len(row) for row in distinct]))
        started = [calls.start("embed_tokens", _padded([distinct[place] for place in chosen])) for chosen in groups]
        halved = overflowed = 0
        for chosen, call in zip(groups, started, strict=True):
            embedded = call.result()
            found[chosen] = embedded.embeddings
            halved, overflowed = halved + embedded.halved, overflowed + embedded.overflowed
        self.ceiling.add_captions(
            sum(b.samples.num_rows for b in batches), sum(call.device_seconds for call in started)
        )
        edges = np.cumsum([0, *(len(batch.tokens.ids) for batch in batches)])
        result = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            result.append(Embedded(found[of_row[start:stop]], halved, overflowed))
            halved = overflowed = 0  # counted for the window's first batch only
        return result

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of captions of these lengths in the groups that go through the model together."""
        if self.batch_size == 1:
            # Alone, like each picture: the last bits of an embedding depend on the shape of its batch.
            return ([place] for place in range(len(lengths)))
        return _by_length(lengths, self.batch_size * self.model.architecture.context_length)


def _without_images(batch: DecodedBatch) -> DecodedBatch:
    return dataclasses.replace(batch, samples=batch.samples.drop_columns(["image"]), pixels=batch.pixels[:0].copy())


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
