"""Fetch several images at a time, and return them in the order of their rows."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from clip_transforms.shards.batches import too_large
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.fetch import TooLargeError, fetch_image, shown
from clip_transforms.shards.unit import ReaderOptions, ShardError

Item = TypeVar("Item")

_FETCHES = 16
_AHEAD = 64  # rows whose images are being fetched or are ready
_AHEAD_BYTES = 64 << 20  # of URIs that hold their picture themselves
_SMALL = 4 << 20  # bytes; a larger image is fetched only when its turn comes, so that large ones do not pile up


def fetch_in_order(
    rows: Iterable[tuple[Item, str | None]], fence: Fence, options: ReaderOptions
) -> Generator[tuple[Item, dict[str, Any]], None, None]:
    """Fetch the images of rows.

    Args:
        rows: (anything, URI of the image or None).
        fence: decides which URIs are allowed.
        options: the limit of an image.
    Yields:
        The first of each pair, and a dict with `image` or `image_reject`; empty without a URI.
    Raises:
        ShardError: if `rows` raises one; all rows before it are yielded first.
    """
    limit = min(options.max_image_bytes, _SMALL)
    stopped = threading.Event()
    waiting: collections.deque[tuple[Item, str | None, concurrent.futures.Future | None]] = collections.deque()
    held = 0  # characters of the URIs that wait
    damage: ShardError | None = None
    left = iter(rows)
    pool = concurrent.futures.ThreadPoolExecutor(_FETCHES, "fetch")
    try:
        while True:
            try:
                while len(waiting) < _AHEAD and held < _AHEAD_BYTES and (found := next(left, None)) is not None:
                    item, uri = found
                    held += len(uri or "")
                    future = pool.submit(fetch_image, uri, fence, limit, stopped) if uri else None
                    waiting.append((item, uri, future))
            except ShardError as error:  # yield the rows before the damage first
                damage = error
            if not waiting:
                break
            item, uri, future = waiting.popleft()
            held -= len(uri or "")
            yield item, _fetched(future, uri, fence, options, stopped) if uri and future else {}
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if damage is not None:
        raise damage


def _fetched(
    future: concurrent.futures.Future, uri: str, fence: Fence, options: ReaderOptions, stopped: threading.Event
) -> dict[str, Any]:
    try:
        return future.result()
    except TooLargeError as error:
        if options.max_image_bytes <= _SMALL or (error.num_bytes or 0) > options.max_image_bytes:
            return _too_large(uri, error, options)
    try:
        return fetch_image(uri, fence, options.max_image_bytes, stopped)
    except TooLargeError as error:
        return _too_large(uri, error, options)


def _too_large(uri: str, error: TooLargeError, options: ReaderOptions) -> dict[str, Any]:
    return too_large("image", error.num_bytes, options.max_image_bytes, f"{shown(uri)}: ")
