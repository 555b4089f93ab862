"""A stage that runs ahead: it keeps the order and the bound in bytes, counts seconds, and passes errors on."""

import threading
import time
from collections import Counter

import pytest

from clip_transforms.engine.ahead import Ahead


def ahead(stream, room=10, size=lambda item: 1, seconds=None, **more):
    return Ahead(stream, "stage", lambda: room, size, Counter() if seconds is None else seconds, **more)


def test_items_come_in_order_and_end():
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, 0, ""])) == [None, 0, ""], "no item is mistaken for the end"


@pytest.mark.parametrize("room, size, held", [(10, 1, 10), (10, 4, 2), (10, 100, 1), (0, 1, 1)])
def test_held_items_are_bounded_including_the_consumers_current_one(room, size, held):
    begun = []
    iterator = iter(ahead(range(30), room, lambda item: size, begin=lambda item: begun.append(item) or item))
    for taken in range(1, 5):
        next(iterator)
        time.sleep(0.05)
        assert len(begun) == taken - 1 + held
    iterator.close()


def test_an_error_comes_after_the_items_before_it():
    def stream():
        yield 1
        raise KeyError("gone")

    iterator = iter(ahead(stream()))
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="gone"):
        next(iterator)


def test_leaving_early_closes_the_stream_and_leaves_no_thread():
    closed, before = [], set(threading.enumerate())

    def stream():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    iterator = iter(ahead(stream()))
    next(iterator)
    iterator.close()
    assert closed == ["stage"] and set(threading.enumerate()) <= before


def test_the_clocks_say_who_waited_for_whom():
    seconds = Counter()

    def slow():
        for i in range(4):
            time.sleep(0.05)
            yield i

    assert len(list(ahead(slow(), seconds=seconds))) == 4
    assert seconds["stage"] >= 0.2 and seconds["wait for stage"] > seconds["wait behind stage"]
    seconds.clear()
    for _ in ahead(range(4), room=1, seconds=seconds):
        time.sleep(0.05)
    assert seconds["wait behind stage"] >= 0.1 and seconds["wait behind stage"] > seconds["wait for stage"]
