"""Bytes → pixels and captions → tokens, in a thread pool ahead of the model, in the order of the source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import AvifImagePlugin, Image

from clip_transforms.clip.preprocess import MAX_IMAGE_PIXELS, ImageError, Preprocessing, decode
from clip_transforms.clip.tokenizer import Tokens, default_tokenizer
from clip_transforms.engine.ahead import Ahead
from clip_transforms.engine.ceiling import Ceiling

MAX_AHEAD_BYTES = 32 << 20  # encoded images and pixels that wait for the model


@dataclasses.dataclass
class DecodedBatch:
    """A batch ready for the model; rows that are in no list offer nothing that can be embedded.

    Attributes:
        unit: the place of its unit in the task.
        samples: as read.
        pixels: uint8 [m, 3, r, r] of the decoded images.
        image_rows: the m places of these in `samples`.
        sizes: (width, height) in pixels of the m stored images.
        sha256: hex, of the n encoded images; None without one.
        tokens: of the captions.
        caption_rows: the places of these in `samples`.
        rejects: (row in the batch, reason, message, bytes) of the images that could not be decoded.
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


@dataclasses.dataclass
class _Waiting:
    """A batch whose work lies in the pool."""

    unit: int
    samples: pa.RecordBatch
    pixels: np.ndarray
    images: list[tuple[int, concurrent.futures.Future]]
    tokens: concurrent.futures.Future
    caption_rows: list[int]


class DecodeAhead:
    """Decodes a stream of batches in the background.

    The stream yields `(unit, record batch)`, and anything else that is passed through in its place, such as the mark
    of a unit's end. A thread of its own reads the stream, `threads` decode, and what waits for the model is bounded
    in bytes. The order of the stream is kept.
    """

    def __init__(
        self,
        stream: Iterable[Any],
        preprocessing: Preprocessing,
        ceiling: Ceiling,
        threads: int,
        seconds: Counter | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
        pinned: bool = False,
    ):
        """Start nothing yet; iterating does.

        Args:
            stream: see above.
            preprocessing: of the model's images and captions.
            ceiling: while it measures, one batch is decoded at a time.
            threads: of the pool.
            seconds: `read` and `decode` seconds are added to it.
            max_pixels: of one picture, stored and resized.
            pinned: whether pixels lie in memory that a GPU copies from by itself.
        """
        self._pinned = pinned
        self._stream, self._preprocessing, self._ceiling = stream, preprocessing, ceiling
        self._threads, self._max_pixels = threads, max_pixels
        set_up_decoders()
        if max_pixels > MAX_IMAGE_PIXELS:  # Pillow's own limit would refuse first
            Image.MAX_IMAGE_PIXELS = max_pixels
        self.seconds = seconds if seconds is not None else Counter()

    def __iter__(self) -> Iterator[Any]:
        """Decoded batches, and what is passed through.

        Raises:
            Exception: whatever reading the stream raised.
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
        images = item[1].column("image")
        return item[1].nbytes + (len(images) - images.null_count) * 3 * self._preprocessing.side**2

    def _submit(self, pool: concurrent.futures.ThreadPoolExecutor, item: Any) -> Any:
        if not _is_batch(item):
            return item
        unit, samples = item
        images = [(row, data) for row, data in enumerate(samples.column("image")) if data.is_valid]
        captions = [(row, text) for row, text in enumerate(samples.column("caption").to_pylist()) if text is not None]
        side = self._preprocessing.side
        pixels = torch.empty((len(images), 3, side, side), dtype=torch.uint8, pin_memory=self._pinned).numpy()
        tokenize, length = default_tokenizer().tokenize, self._preprocessing.context_length
        tokens = pool.submit(self._timed, tokenize, [text for _, text in captions], length)
        futures = [
            (row, pool.submit(self._timed, _decode_into, pixels, place, data, self._preprocessing, self._max_pixels))
            for place, (row, data) in enumerate(images)
        ]
        return _Waiting(unit, samples, pixels, futures, tokens, [row for row, _ in captions])

    def _timed(self, function, *args):
        start = time.thread_time()
        result = function(*args)
        return result, time.thread_time() - start

    def _finish(self, waiting: _Waiting) -> DecodedBatch:
        """Wait for the pool; pixels of images that could not be decoded are squeezed out."""
        start = time.perf_counter()
        kept, rows, sizes, rejects = [], [], [], []
        sha256: list[str | None] = [None] * waiting.samples.num_rows
        for place, (row, future) in enumerate(waiting.images):
            (sha256[row], result), seconds = future.result()
            self.seconds["decode"] += seconds
            if isinstance(result, ImageError):
                num_bytes = waiting.samples.column("image")[row].as_buffer().size
                rejects.append((row, result.reason, str(result), num_bytes))
            else:
                kept.append(place)
                rows.append(row)
                sizes.append(result)
        tokens, seconds = waiting.tokens.result()
        self.seconds["decode"] += seconds
        self.seconds["wait for decode"] += time.perf_counter() - start
        pixels = waiting.pixels if len(kept) == len(waiting.images) else waiting.pixels[kept]
        return DecodedBatch(
            waiting.unit, waiting.samples, pixels, rows, sizes, sha256, tokens, waiting.caption_rows, rejects
        )


def _is_batch(item: Any) -> bool:
    return isinstance(item, tuple) and isinstance(item[1], pa.RecordBatch)


@functools.lru_cache(maxsize=1)
def set_up_decoders() -> None:
    """Set Pillow's decoders up for this process: one thread a picture, and no hints about odd pictures on the terminal.

    A picture that cannot be decoded is a reject with a message of its own.
    """
    # Pictures are decoded in a pool already. libavif would start a thread for each core and each picture, and report a
    # damaged picture where no thread can be started.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    # libtiff writes to file descriptor 2 by itself, and Pillow has no switch for it; NULL is libtiff's own for silence.
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff, or with its symbols hidden
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            handler(None)


def _decode_into(
    pixels: np.ndarray, place: int, image: pa.BinaryScalar, preprocessing: Preprocessing, max_pixels: int
) -> tuple[str, tuple[int, int] | ImageError]:
    """Decode one image into its place; its SHA-256, and its stored size or why it cannot be used."""
    data = image.as_py()  # copied here, not when it was submitted: what waits in the queue is there once
    digest = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data, preprocessing, max_pixels)
    except ImageError as error:
        return digest, error
    pixels[place] = decoded.pixels
    return digest, (decoded.width, decoded.height)
