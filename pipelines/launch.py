"""Run a transform as a pipeline of its own. Clean up and say one sentence, whatever ends the run."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.runners import create_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from clip_transforms.workers.lifetime import how_it_ended
from clip_transforms.workers.runner import in_process, is_direct
from pipelines.beam_options import check_beam_options, check_runner
from pipelines.beam_worker import print_no_tracebacks
from pipelines.command import FAILED, end_after_run, end_before_start
from pipelines.command_line import UsageError
from pipelines.terminal import DROPPED, complain, is_of_beam, on_signals, silence, tracebacks_are_wanted
from pipelines.waiting import no_silent_wait

GO_ON = "what is committed stays; the same command goes on from there"
# Errors whose sentence ends with the way out: with them the same command would fail again, or must not go on.
_HAS_A_CURE = re.compile(r"clip_transforms[\w.]*\.(Expression|Selection|RowFile|Dataset|Output)Error: ")
_POINTS_BACK = "Check prior failing response"  # Prism may ask again for a bundle that failed, and report that answer
_DEATH_SECONDS = 1.0  # until Beam's thread that waits for a dead worker says so
_PATIENCE_SECONDS = 10.0  # until a run whose worker died is ended
_DETACHED = "the job goes on without this command and writes run.json at its end"


def make_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """Return an empty pipeline, so that wrong options of Beam's are found before anything is planned.

    Every runner that works in this process becomes FnApiRunner. DirectRunner would first try to download another.

    Raises:
        UsageError: if Beam refuses the options or would refuse them later, or if there is no temporary folder.
    """
    _check_temporary_folder()
    standard = options.view_as(StandardOptions)
    check_runner(standard.runner)
    if is_direct(options):
        standard.runner = "FnApiRunner"
    logging.disable(logging.WARNING)  # Beam's refusal repeats its warnings
    try:
        runner = _FnApiRunner() if is_direct(options) else create_runner(standard.runner)
        check_beam_options(options, runner)
        return beam.Pipeline(runner=runner, options=options)
    except UsageError:
        raise
    except Exception as error:  # a wrong name of a runner can raise any error
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"Beam refuses these options: {said}; see Beam's documentation, or omit --runner") from None
    finally:
        logging.disable(logging.NOTSET)


def _check_temporary_folder() -> None:
    try:
        with tempfile.TemporaryFile():
            return
    except OSError as error:
        raise UsageError(
            f"the temporary folder {tempfile.gettempdir()} cannot be written to: {error.strerror}; make it, or set "
            "TMPDIR to a folder with room"
        ) from None


class _FnApiRunner(FnApiRunner):
    """FnApiRunner whose workers exit when this process does.

    Beam starts its workers through a shell, so they do not see that their launcher died, and could wait forever.
    """

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        """Replace the command of the worker processes."""
        command = f"exec {shlex.quote(sys.executable)} -m pipelines.beam_worker {os.getpid()}"
        environment = SubprocessSDKEnvironment.from_command_string(command)
        for proto in pipeline_proto.components.environments.values():
            if proto.urn == python_urns.SUBPROCESS_SDK:
                proto.payload = environment.to_runner_api_parameter(cast(Any, None))[1]  # it uses no context
        return super().run_via_runner_api(pipeline_proto, options)


def launch(pipeline: beam.Pipeline, transform: Any) -> bool:
    """Run a pipeline of one transform. The reason for a failure goes to stderr, in one line.

    Args:
        pipeline: from `make_pipeline`.
        transform: a transform with a `run_folder`, which is removed at the end.
    Returns:
        Whether the run succeeded.
    Raises:
        ValueError: if another run began on the same output. Nothing was started then.
    """
    detached, result = not is_direct(pipeline.options), None
    print_no_tracebacks()  # in workers that are threads of this process, as with LOOPBACK

    def clean_up() -> None:
        if not detached:
            _end(transform)

    try:
        separate = not detached and not in_process(pipeline.options)
        with end_at_signals(_DETACHED if detached else GO_ON, clean_up), _watch_workers(clean_up, separate):
            result = start(pipeline, transform)
            waits = no_silent_wait(transform.run_folder.uri, pipeline.options) if detached else contextlib.nullcontext()
            with waits:
                result.wait_until_finish()
        return True
    except Exception as error:  # whatever ended the run, its reason becomes one line
        if isinstance(error, (ValueError, OSError)) and transform.run_folder is None:
            raise  # nothing was started yet
        if detached and not _has_ended(result):
            transform.run_folder = None  # it belongs to the job, which still writes there
            return failed(error, "the job may go on without this command; it then writes run.json at its end")
        return failed(error)
    finally:
        if transform.run_folder is not None:
            transform.run_folder.close()


def start(pipeline: beam.Pipeline, transform: Any) -> PipelineResult:
    """Start a pipeline of one transform."""
    _ = pipeline | transform
    return pipeline.run()


def _has_ended(result: Any) -> bool:
    """Return whether a job has certainly ended or never begun; False if its service does not answer."""
    try:
        return result is None or PipelineState.is_terminal(result.state)
    except Exception:  # a runner's client may raise anything if it cannot ask
        return False


def _end(transform: Any) -> None:
    """Kill the workers of a run that a signal ends, and remove its temporary folder."""
    for process in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if transform.run_folder is not None:
        transform.run_folder.close()


def failed(error: BaseException, go_on: str = GO_ON) -> bool:
    """Say why a run failed, in one line; always False."""
    named = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    complain(f"the run failed: {_cause_of_run(error)}{'' if _HAS_A_CURE.search(named) else f'; {go_on}'}")
    if tracebacks_are_wanted():
        raise error
    return False


def _cause_of_run(error: BaseException) -> str:
    """Return the line that says what went wrong; if Beam's error only points at an earlier one, that of this one."""
    cause = _cause(str(error)) or type(error).__name__
    earlier = map(_cause, DROPPED if _POINTS_BACK in cause else ())
    return next((other for other in earlier if other and _POINTS_BACK not in other), cause)


def _cause(text: str) -> str:
    """Return the line of an error that says what went wrong: the last one, since a worker's traceback comes before."""
    text = text.strip()
    if found := re.search(r'^\s*details = "(.*)"$', text, re.MULTILINE):  # the last line of gRPC's text is a bracket
        return found[1]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("[while running")]
    said = re.sub(r"\s*\[while running '.*'\]$", "", lines[-1].strip()) if lines else ""  # Beam's step, not the cause
    if "Traceback (most recent call last)" in text:
        said = re.sub(r"^([\w.]+(Error|Exception): )+(?=.)", "", said)  # class names, the outermost first
    return said


def _descendants(pid: int) -> list[int]:
    """Return the ids of the processes that a process started, and of theirs; none if the kernel does not list them."""
    try:
        threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(child) for of_thread in threads for child in of_thread]
    return [*children, *(further for child in children for further in _descendants(child))]


@contextlib.contextmanager
def end_at_signals(go_on: str, clean_up: Callable[[], None]) -> Iterator[None]:
    """On Ctrl-C, SIGTERM and SIGHUP say how to go on, clean up and exit at once.

    This waits for no thread of the runner, the readers or the decoders, whatever they are doing: a file gets its final
    name only when it is whole.

    Args:
        go_on: the part of the sentence that says how to go on.
        clean_up: a function that ends child processes and removes temporary files. Nothing is printed meanwhile.
    """

    def end(number: int, _: Any) -> None:
        on_signals(lambda *_: None)  # once is enough
        _end_now(f"\nended by {signal.Signals(number).name}; {go_on}", clean_up)

    before = on_signals(end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, end_after_run if handler is end_before_start else handler)


@contextlib.contextmanager
def _watch_workers(clean_up: Callable[[], None], separate: bool) -> Iterator[None]:
    """Name the worker process of Beam's that died, and drop the tracebacks of Beam's threads.

    Beam itself says "Channel closed prematurely" after a worker died, or waits forever.

    Args:
        clean_up: as for `end_at_signals`; called if Beam waits.
        separate: whether the workers are processes.
    Raises:
        ChildProcessError: if a worker died while the block ran.
    """
    before = threading.excepthook
    deaths: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        if tracebacks_are_wanted() or not is_of_beam(args.exc_traceback):
            before(args)
        if found := re.fullmatch(r"Worker subprocess exited with return code (-?\d+)", str(args.exc_value)):
            deaths.put(_obituary(int(found[1])))
            if not ended.wait(_PATIENCE_SECONDS):
                _end_now(f"the run failed: {deaths.get()}; {GO_ON}", clean_up)

    threading.excepthook = hook
    try:
        yield
    except Exception as error:
        if separate and "[while running" not in str(error):  # else a worker reports what went wrong in a step
            with contextlib.suppress(queue.Empty):
                raise ChildProcessError(deaths.get(timeout=_DEATH_SECONDS)) from error
        raise
    finally:
        ended.set()
        threading.excepthook = before


def _obituary(code: int) -> str:
    cure = " (if memory ran out: fewer --direct_num_workers need less)" if code == -signal.SIGKILL else ""
    return f"one of Beam's worker processes {how_it_ended(code)}{cure}"


def _end_now(sentence: str, clean_up: Callable[[], None]) -> NoReturn:
    """Say the sentence, be silent from then on, clean up, and exit."""
    complain(sentence)
    silence()  # when the workers die, Beam and gRPC print tracebacks from several threads
    try:
        clean_up()
    finally:
        os._exit(FAILED)
