"""Run a stage in a thread of its own, ahead of the stage that consumes its items, within a bound in bytes."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from typing import Any


class Ahead:
    """Takes items from a stream in a thread, in order, and holds them until the consumer asks for them.

    The size of all held items, including the consumer's current one, is bounded in bytes. A single item is always
    admitted, whatever its size.
    """

    def __init__(
        self,
        stream: Iterable[Any],
        name: str,
        room: Callable[[], int],
        size: Callable[[Any], int],
        seconds: defaultdict[str, float],
        begin: Callable[[Any], Any] = lambda item: item,
    ):
        """Store the settings; the thread starts when iteration does.

        Args:
            stream: the items; it is closed at the end if it has a `close` method.
            name: the stage's name in `seconds`.
            room: returns the bytes that may be held now; 0 admits one item at a time.
            size: returns an item's size in bytes.
            seconds: gets the seconds that the thread takes items (`name`), that the consumer waits (`wait for <name>`)
                and that the thread waits for room (`wait behind <name>`).
            begin: called in the thread for each item once there is room for it; its result is held in the item's place.
        """
        self._stream, self._name, self._room, self._size, self._begin = stream, name, room, size, begin
        self.seconds = seconds
        self._queue: queue.Queue = queue.Queue()
        self._change = threading.Condition()
        self._held = 0
        self._stopped = False

    def __iter__(self) -> Generator[Any, None, None]:
        """Yield the items.

        Raises:
            Exception: the stream's own exception, after all items that came before it.
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
                del item  # frees the memory before its bytes count as free
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
        except BaseException as error:  # passed to the consumer, which raises it
            end = error
        self._queue.put((None, end))

    def _acquire(self, size: int) -> bool:
        """Wait until there is room; return False if the consumer has stopped."""
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
