"""Decode images and tokenize captions in a thread pool, ahead of the model, in the order of the source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from clip_transforms.clip.decoders import ImageError, set_up_decoders
from clip_transforms.clip.preprocess import MAX_IMAGE_PIXELS, DecodedImage, Preprocessing, decode
from clip_transforms.clip.tokenizer import Tokens, default_tokenizer
from clip_transforms.engine.ahead import Ahead
from clip_transforms.engine.calls import new_room
from clip_transforms.engine.ceiling import Ceiling
from schemas.samples import ALL_CAPTIONS

_TOKEN_BYTES = 4
_MOST_AT_ONCE = 8  # images that a thread takes at a time; a future for each image would cost as much as a small image
MAX_AHEAD_BYTES = 32 << 20  # of encoded images and pixels that wait for the model
_NOT_TURNED = "images with an EXIF orientation, which was ignored, as published; --exif_orientation apply turns them"
_CLIPPED = (
    "images of 16 bits or of floats per channel, whose values were clipped to 0 to 255, as published, so that most are "
    "white or black; scale them to 8 bits first, as docs/fidelity.md shows"
)


@dataclasses.dataclass
class DecodedBatch:
    """A batch of n samples, ready for the model. A sample in none of the lists has nothing to embed.

    Attributes:
        unit: the index of the batch's unit in the task.
        samples: the samples, as read.
        pixels: uint8 [m, 3, r, r], the decoded images.
        image_rows: the rows in `samples` of the m decoded images.
        sizes: (width, height) in pixels of the m stored images.
        sha256: the hex SHA-256 of each sample's encoded image; None for a sample without an image.
        tokens: the tokenized captions: the first of each sample, then the further ones that `--captions all` takes.
        caption_rows: the rows in `samples` of the first captions.
        rejects: (row in the batch, reason, message, bytes) of each image that could not be decoded.
        further: (row in `samples`, place among the sample's captions, from 1) of the further captions.
        notes: text → count, of decoded images that a person may expect to be treated differently.
    """

    unit: int
    samples: pa.RecordBatch
    pixels: np.ndarray
    image_rows: list[int]
    sizes: list[tuple[int, int]]
    sha256: list[str | None]
    tokens: Tokens
    caption_rows: list[int]
    rejects: list[tuple[int, str, str, int]]
    further: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    notes: Counter = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class _Waiting:
    """A batch that the pool is working on."""

    unit: int
    samples: pa.RecordBatch
    pixels: np.ndarray
    image_rows: list[int]
    images: list[concurrent.futures.Future]
    tokens: concurrent.futures.Future
    caption_rows: list[int]
    further: list[tuple[int, int]]


class DecodeAhead:
    """Decodes a stream of batches in the background.

    The stream yields `(unit, record batch)` pairs. Other items, such as the mark of a unit's end, are passed through in
    order. One thread reads the stream, `threads` more decode, and the batches that wait for the model are bounded in
    bytes.
    """

    def __init__(
        self,
        stream: Iterable[Any],
        preprocessing: Preprocessing,
        ceiling: Ceiling,
        threads: int,
        seconds: defaultdict[str, float] | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
        room: Callable[[tuple[int, ...]], np.ndarray] = new_room,
    ):
        """Store the settings; the threads start when iteration does.

        Args:
            stream: batches and other items, as described above.
            preprocessing: the model's preprocessing.
            ceiling: while it measures, one batch is decoded at a time.
            threads: the number of threads that decode.
            seconds: gets the seconds of reading, decoding and waiting, by stage.
            max_pixels: the largest number of pixels in one image, stored or resized.
            room: returns memory for pixels; uint8 of a shape.
        """
        self._room_for = room
        self._stream, self._preprocessing, self._ceiling = stream, preprocessing, ceiling
        self._threads, self._max_pixels = threads, max_pixels
        set_up_decoders()
        if max_pixels > MAX_IMAGE_PIXELS:  # Pillow's own limit would refuse first
            Image.MAX_IMAGE_PIXELS = max_pixels
        self.seconds = seconds if seconds is not None else defaultdict(float)

    def __iter__(self) -> Generator[Any, None, None]:
        """Yield decoded batches, and the other items of the stream.

        Raises:
            Exception: the stream's own exception, or an error of the machine in a thread.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._threads, "decode")
        begun = Ahead(self._stream, "read", self._room, self._size, self.seconds, lambda item: self._submit(pool, item))
        try:
            with contextlib.closing(iter(begun)) as items:
                for item in items:
                    yield self._finish(item) if isinstance(item, _Waiting) else item
        finally:
            pool.shutdown(cancel_futures=True)

    def _room(self) -> int:
        return 0 if self._ceiling.measuring else MAX_AHEAD_BYTES

    def _size(self, item: Any) -> int:
        if not _is_batch(item):
            return 0
        samples = item[1]
        images = samples.column("image")
        size = samples.nbytes + (len(images) - images.null_count) * 3 * self._preprocessing.side**2
        if ALL_CAPTIONS in samples.schema.names:
            size += len(samples.column(ALL_CAPTIONS).flatten()) * self._preprocessing.context_length * _TOKEN_BYTES
        return size

    def _submit(self, pool: concurrent.futures.ThreadPoolExecutor, item: Any) -> Any:
        if not _is_batch(item):
            return item
        unit, samples = item
        images = [(row, data) for row, data in enumerate(samples.column("image")) if data.is_valid]
        captions = [(row, text) for row, text in enumerate(samples.column("caption").to_pylist()) if text is not None]
        further = _further_captions(samples)
        texts = [text for _, text in captions] + [text for *_, text in further]
        side = self._preprocessing.side
        pixels = self._room_for((len(images), 3, side, side))
        tokenize, length = default_tokenizer().tokenize, self._preprocessing.context_length
        tokens = pool.submit(self._timed, tokenize, texts, length)
        run = max(1, min(_MOST_AT_ONCE, len(images) // (2 * self._threads)))
        futures = [
            pool.submit(
                self._timed,
                _decode_into,
                pixels[place : place + run],
                [data for _, data in images[place : place + run]],
                self._preprocessing,
                self._max_pixels,
            )
            for place in range(0, len(images), run)
        ]
        image_rows, caption_rows = [row for row, _ in images], [row for row, _ in captions]
        places = [(row, index) for row, index, _ in further]
        return _Waiting(unit, samples, pixels, image_rows, futures, tokens, caption_rows, places)

    def _timed(self, function, *args):
        start = time.thread_time()
        result = function(*args)
        return result, time.thread_time() - start

    def _finish(self, waiting: _Waiting) -> DecodedBatch:
        """Wait for the pool to finish a batch, and remove the pixels of images that could not be decoded."""
        start = time.perf_counter()
        kept, rows, sizes, rejects = [], [], [], []
        notes: Counter = Counter()
        sha256: list[str | None] = [None] * waiting.samples.num_rows
        for place, (row, (digest, result)) in enumerate(zip(waiting.image_rows, self._decoded(waiting), strict=True)):
            sha256[row] = digest
            if isinstance(result, ImageError):
                num_bytes = waiting.samples.column("image")[row].as_buffer().size
                rejects.append((row, result.reason, str(result), num_bytes))
            else:
                kept.append(place)
                rows.append(row)
                sizes.append((result.width, result.height))
                notes[_NOT_TURNED] += result.orientation > 1 and self._preprocessing.exif_orientation == "ignore"
                notes[_CLIPPED] += result.is_deep
        tokens, seconds = waiting.tokens.result()
        self.seconds["decode"] += seconds
        self.seconds["wait for decode"] += time.perf_counter() - start
        pixels = waiting.pixels if len(kept) == len(waiting.image_rows) else waiting.pixels[kept]
        return DecodedBatch(
            waiting.unit,
            waiting.samples,
            pixels,
            rows,
            sizes,
            sha256,
            tokens,
            waiting.caption_rows,
            rejects,
            waiting.further,
            +notes,
        )

    def _decoded(self, waiting: _Waiting) -> Iterator[tuple[str, DecodedImage | ImageError]]:
        """Yield the results for the images of a batch, in order, and count the seconds."""
        for future in waiting.images:
            results, seconds = future.result()
            self.seconds["decode"] += seconds
            yield from results


def _further_captions(samples: pa.RecordBatch) -> list[tuple[int, int, str]]:
    """Return (row, place among the sample's captions, text) of all captions but the first; none without a list."""
    if ALL_CAPTIONS not in samples.schema.names:
        return []
    return [
        (row, index, entry["caption"])
        for row, entries in enumerate(samples.column(ALL_CAPTIONS).to_pylist())
        for index, entry in enumerate(entries or ())
        if index > 0 and entry["caption"] is not None
    ]


def _is_batch(item: Any) -> bool:
    return isinstance(item, tuple) and isinstance(item[1], pa.RecordBatch)


def _decode_into(
    pixels: np.ndarray, images: Sequence[pa.BinaryScalar], preprocessing: Preprocessing, max_pixels: int
) -> list[tuple[str, DecodedImage | ImageError]]:
    """Decode some images into their places.

    Args:
        pixels: uint8 [n, 3, r, r], the places.
        images: the n encoded images.
        preprocessing: the model's preprocessing.
        max_pixels: the largest number of pixels in one image.
    Returns:
        For each image the SHA-256 of the encoded image, and the decoded image or the error that makes it a reject.
    """
    found: list[tuple[str, DecodedImage | ImageError]] = []
    for place, image in zip(pixels, images, strict=True):
        data = image.as_py()  # copied here, not on submission, so that waiting images are held in memory once
        digest = hashlib.sha256(data).hexdigest()
        try:
            found.append((digest, decode(data, preprocessing, max_pixels, place, pixels_of)))
        except ImageError as error:
            found.append((digest, error))
    return found


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an RGB image; uint8 [h, w, 3].

    An image in one block of memory, as all below 16 MiB are, is seen there, without a copy: Arrow's interface gives its
    four bytes a pixel, of which the fourth is not used. Copying it as `np.asarray` does would hold the interpreter's
    lock.
    """
    if Image.core.get_alignment() > 1:  # there may be gaps between rows, of which Arrow is not told
        return np.asarray(image)
    try:
        values = pa.array(image).values
    except ValueError:  # it lies in several blocks
        return np.asarray(image)
    return np.frombuffer(values.buffers()[1], np.uint8).reshape(image.height, image.width, 4)[:, :, :3]
