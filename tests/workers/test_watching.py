"""A thread that watches runs while its block runs, and never after it."""

import contextlib
import threading
import time

import pytest

from clip_transforms.workers.watching import watching


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_the_thread_runs_beside_the_block_and_has_ended_when_the_block_is_left(error):
    begun, said = threading.Event(), []

    def watch(done):
        begun.set()
        assert done.wait(20)
        time.sleep(0.1)  # whoever did not wait for the thread would find nothing said
        said.append(threading.current_thread().name)

    refused = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with refused, watching(watch, "a watch"):
        assert begun.wait(20) and said == []
        if error:
            raise error
    assert said == ["a watch"]
