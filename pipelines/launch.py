"""Run a transform as a pipeline of its own, and end well however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

GO_ON = "what is committed stays; the same command goes on from there"


def prepare(options: PipelineOptions) -> bool:
    """Choose FnApiRunner where no runner is given; whether the work will be done inside this process."""
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if not standard.runner:
        standard.runner = "FnApiRunner"
    return standard.runner.endswith("FnApiRunner") and direct.direct_running_mode in (None, "in_memory")


def launch(transform: Any, options: PipelineOptions) -> bool:
    """Run a pipeline of one transform; whether it succeeded. What went wrong is said on stderr.

    Args:
        transform: with a `run_folder`, which is removed at the end.
        options: with a runner, see `prepare`.
    Raises:
        ValueError: if another run began on the same output, so that this one wrote nothing.
    """
    pipeline = beam.Pipeline(options=options)
    try:
        _ = pipeline | transform
        with _end_at_signals(lambda: transform.run_folder.close()):
            pipeline.run().wait_until_finish()
        return True
    except ValueError:
        if transform.run_folder is None:
            raise  # nothing was started yet
        return _failed(sys.exc_info()[1])
    except Exception as error:  # whatever ended the run: its reason in one line, with the runner's own log above it
        return _failed(error)
    finally:
        if transform.run_folder is not None:
            transform.run_folder.close()


def _failed(error: BaseException) -> bool:
    lines = [line for line in str(error).strip().splitlines() if line.strip() and not line.startswith("[while running")]
    print(f"the run failed: {lines[-1].strip() if lines else type(error).__name__}; {GO_ON}", file=sys.stderr)
    if os.environ.get("CLIP_TRANSFORMS_TRACEBACK"):
        raise error
    return False


@contextlib.contextmanager
def _end_at_signals(clean_up: Callable[[], None]) -> Iterator[None]:
    """On Ctrl-C and SIGTERM say how to go on, clean up, and end at once.

    Threads of the runner, the readers and the decoders may be in the middle of anything; nothing that is not whole has
    a final name, so none of them is waited for.
    """

    def end(number: int, _: Any) -> None:
        print(f"\nended by {signal.Signals(number).name}; {GO_ON}", file=sys.stderr, flush=True)
        clean_up()
        os._exit(1)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
