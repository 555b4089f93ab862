"""A thread that watches while a block runs, and is gone when the block is left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def watching(watch: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run a function in a thread while the block runs, and wait for its end at the end of the block.

    Args:
        watch: the function. It gets an event that is set when the block is left, and must return soon after that.
        name: the thread's name.
    """
    done = threading.Event()
    thread = threading.Thread(target=watch, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
