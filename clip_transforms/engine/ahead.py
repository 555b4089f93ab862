"""A stage of the pipeline in a thread of its own, ahead of the stage behind it, bounded in bytes."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Ahead:
    """Takes items from a stream in a thread, in order, and holds them for whoever iterates.

    What is held, the item in the consumer's hands included, is bounded in bytes; one item has room whatever its size.
    """

    def __init__(
        self,
        stream: Iterable[Any],
        name: str,
        room: Callable[[], int],
        size: Callable[[Any], int],
        seconds: Counter,
        begin: Callable[[Any], Any] = lambda item: item,
    ):
        """Start nothing yet; iterating does.

        Args:
            stream: closed at the end, where it can be.
            name: of the stage: `seconds` gets its `name` (taking items), `wait for <name>` (of the consumer) and
                `wait behind <name>` (for room).
            room: bytes that may be held now; 0 lets one item in when the consumer has let go of all others.
            size: of an item, in bytes.
            seconds: see above.
            begin: called in the thread for each item when there is room for it; what it gives is held.
        """
        self._stream, self._name, self._room, self._size, self._begin = stream, name, room, size, begin
        self.seconds = seconds
        self._queue: queue.Queue = queue.Queue()
        self._change = threading.Condition()
        self._held = 0
        self._stopped = False

    def __iter__(self) -> Iterator[Any]:
        """The items.

        Raises:
            Exception: whatever the stream raised, after the items before it.
        """
        thread = threading.Thread(target=self._fill, name=self._name, daemon=True)
        thread.start()
        try:
            while True:
                start = time.perf_counter()
                size, item = self._queue.get()
                self.seconds[f"wait for {self._name}"] += time.perf_counter() - start
                if size is None:
                    if item is not None:
                        raise item
                    return
                yield item
                del item  # what was held is free when its bytes are given back
                self._release(size)
        finally:
            with self._change:
                self._stopped = True
                self._change.notify()
            thread.join()

    def _fill(self) -> None:
        end = None
        try:
            stream = iter(self._stream)
            try:
                while not self._stopped:
                    start = time.perf_counter()
                    item = next(stream, _END)
                    self.seconds[self._name] += time.perf_counter() - start
                    if item is _END:
                        break
                    size = self._size(item)
                    if not self._acquire(size):
                        break
                    self._queue.put((size, self._begin(item)))
                    del item
            finally:
                if hasattr(stream, "close"):
                    stream.close()
        except BaseException as error:  # handed to the consumer, which raises it
            end = error
        self._queue.put((None, end))

    def _acquire(self, size: int) -> bool:
        """Wait until there is room; False if nobody listens any more."""
        start = time.perf_counter()
        with self._change:
            self._change.wait_for(
                lambda: self._stopped or self._held == 0 or (0 < self._room() and self._held + size <= self._room())
            )
            self._held += size
        self.seconds[f"wait behind {self._name}"] += time.perf_counter() - start
        return not self._stopped

    def _release(self, size: int) -> None:
        with self._change:
            self._held -= size
            self._change.notify()


_END = object()
