"""Run a transform as a pipeline of its own, and end well however it ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from clip_transforms.clip.downloads import fetch
from clip_transforms.clip.model_spec import Checkpoint
from clip_transforms.runner_options import is_direct
from pipelines.options import UsageError

GO_ON = "what is committed stays; the same command goes on from there"


def prepare(options: PipelineOptions) -> bool:
    """Choose FnApiRunner where no runner is given; whether the work will be done inside this process."""
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if not standard.runner:
        standard.runner = "FnApiRunner"
    return standard.runner.endswith("FnApiRunner") and direct.direct_running_mode in (None, "in_memory")


class _FnApiRunner(FnApiRunner):
    """Beam's own, but that its worker processes end with this one.

    Beam starts them behind a shell, which keeps them from seeing that their launcher died: killed at the wrong moment,
    it would leave them waiting for ever.
    """

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        """Replace the command of the worker processes."""
        command = f"exec {shlex.quote(sys.executable)} -m clip_transforms.worker_process {os.getpid()}"
        environment = SubprocessSDKEnvironment.from_command_string(command)
        for proto in pipeline_proto.components.environments.values():
            if proto.urn == python_urns.SUBPROCESS_SDK:
                proto.payload = environment.to_runner_api_parameter(None)[1]
        return super().run_via_runner_api(pipeline_proto, options)


def _runner(options: PipelineOptions) -> Any:
    """The runner itself where it is FnApiRunner; else its name, for Beam to look up."""
    name = options.view_as(StandardOptions).runner
    return _FnApiRunner() if name.rpartition(".")[2] == "FnApiRunner" else name


def launch(transform: Any, options: PipelineOptions) -> bool:
    """Run a pipeline of one transform; whether it succeeded. What went wrong is said on stderr.

    Args:
        transform: with a `run_folder`, which is removed at the end.
        options: with a runner, see `prepare`.
    Raises:
        ValueError: if Beam refuses the options, or another run began on the same output; nothing was started then.
    """
    try:
        pipeline = beam.Pipeline(runner=_runner(options), options=options)
    except Exception as error:  # a runner that is none raises what it likes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"Beam refuses these options: {first}; see its own documentation, or leave --runner away"
        ) from None
    detached = not is_direct(options)
    try:
        with end_at_signals(lambda: _end(transform, detached)):
            _ = pipeline | transform
            pipeline.run().wait_until_finish()
        return True
    except Exception as error:  # whatever ended the run: its reason in one line, with the runner's own log above it
        if isinstance(error, (ValueError, OSError)) and transform.run_folder is None:
            raise  # nothing was started yet
        return _failed(error)
    finally:
        if transform.run_folder is not None:
            transform.run_folder.close()


def _end(transform: Any, detached: bool) -> str:
    """Clean up after a run that a signal ends; how to go on."""
    if detached:
        return "the job goes on without this command, and writes run.json at its end"
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    if transform.run_folder is not None:
        transform.run_folder.close()
    return GO_ON


def fetch_model(checkpoint: Checkpoint, options: PipelineOptions) -> None:
    """Download a published model before a run on this machine starts; workers elsewhere have caches of their own.

    Raises:
        CheckpointError: if it cannot be had.
    """
    if checkpoint.published and is_direct(options):
        fetch(checkpoint.published)


def _failed(error: BaseException) -> bool:
    lines = [line for line in str(error).strip().splitlines() if line.strip() and not line.startswith("[while running")]
    print(f"the run failed: {lines[-1].strip() if lines else type(error).__name__}; {GO_ON}", file=sys.stderr)
    if os.environ.get("CLIP_TRANSFORMS_TRACEBACK"):
        raise error
    return False


def _children() -> list[int]:
    """The processes that this one started, where the kernel tells."""
    try:
        threads = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:
        return []
    return [int(pid) for pids in threads for pid in pids]


@contextlib.contextmanager
def end_at_signals(clean_up: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C and SIGTERM clean up, say how to go on, and end at once.

    Threads of the runner, the readers and the decoders may be in the middle of anything; nothing that is not whole has
    a final name, so none of them is waited for.

    Args:
        clean_up: gives the sentence that says how to go on.
    """

    def end(number: int, _: Any) -> None:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        print(f"\nended by {signal.Signals(number).name}; {clean_up()}", file=sys.stderr, flush=True)
        os._exit(1)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
