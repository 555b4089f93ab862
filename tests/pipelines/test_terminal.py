"""Streams and signals in whatever state a shell, a scheduler or a user leaves them."""

import logging
import signal
import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import ROOT, command, make_tar, rows_of
from forked import Process, run

from pipelines import launch, terminal

IMPORTED = """
import os, signal, sys
def state():
    numbers = sorted(signal.valid_signals())
    return [signal.getsignal(n) for n in numbers], [sys.stdout, sys.stderr, sys.stdout.errors, sys.stderr.errors]
os.close(0)
sys.argv[:] = ["-m"]  # as while Python imports the package of a command
before = state()
import {module}
assert state() == before, (before, state())
assert "apache_beam" not in sys.modules
try:
    os.fstat(0)
except OSError:
    pass
else:
    raise AssertionError("a stream was opened")
"""


@pytest.mark.parametrize("module", ["pipelines", "pipelines.command", "pipelines.terminal"])
def test_importing_the_package_does_nothing(module):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(module=module)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_runs_before_beam_is_imported_is_of_the_standard_library():
    program = "import sys; before = {*sys.modules}; import pipelines.command; print(*sys.modules.keys() - before)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    foreign = {name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"pipelines", "pipelines.command", "pipelines.terminal"}, done.stderr


def test_a_command_without_beam_says_how_to_get_it(tmp_path):
    (tmp_path / "apache_beam.py").write_text("raise ModuleNotFoundError('No module', name='apache_beam')")
    done = command("pipelines.label", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: apache_beam is not installed here: `make demo`")


def argv(tmp_path, checkpoint):
    tar = make_tar(tmp_path / "a.tar", 3)
    return ["--input", tar, "--output", str(tmp_path / "out"), "--model", checkpoint, "--precision=fp32"]


def test_a_run_whose_output_nobody_reads_goes_on(tmp_path, tiny_checkpoint):
    process = Process(
        "-m",
        "pipelines.embed",
        *argv(tmp_path, tiny_checkpoint),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # as `| head -0` does
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert len(rows_of(tmp_path / "out")) == 3


@pytest.mark.slow  # an interpreter that a shell starts imports everything: nine seconds
def test_a_run_with_closed_streams_writes_no_line_into_a_part(tmp_path, tiny_checkpoint):
    script = 'exec "$0" -m pipelines.embed "$@" <&- >&- 2>&-'
    line = ["sh", "-c", script, sys.executable, *argv(tmp_path, tiny_checkpoint)]
    assert subprocess.run(line, cwd=ROOT, timeout=60).returncode == 0
    assert len(rows_of(tmp_path / "out")) == 3


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path, tiny_checkpoint):
    done = command("pipelines.embed", "--help", env={"PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"image\u2013caption shards" in done.stdout


def test_what_is_ignored_stays_ignored_as_under_nohup():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # these tests may run as a background job
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert set(terminal.on_signals(lambda *_: None)) == {signal.SIGINT, signal.SIGTERM}
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_workers_warning_is_its_message_alone():
    text = 'severity: WARN timestamp { seconds: 17 } message: "\\\'cat\\\' and \\303\\244" thread: "t"'
    record = logging.LogRecord("root", logging.WARNING, "", 0, "Worker: %s", (text,), None)
    assert terminal._only_message(record) and record.getMessage() == "'cat' and ä"
    ours = logging.LogRecord("root", logging.WARNING, "", 0, "%s has no _SUCCESS", ("out",), None)
    assert terminal._only_message(ours) and ours.getMessage() == "out has no _SUCCESS"


def test_what_a_job_service_says_of_an_error_is_dropped_and_its_warnings_are_not():
    """Beam logs it on the root logger. Flink's errors are Java tracebacks, before the one line that says why."""

    def record(level, module):
        path = f"/site-packages/apache_beam/runners/portability/{module}.py"
        return logging.LogRecord("root", level, path, 540, "%s", ("ProgramInvocationException",), None)

    assert not terminal._no_error_of_beam(record(logging.ERROR, "portable_runner"))
    assert terminal._no_error_of_beam(record(logging.WARNING, "portable_runner"))
    assert terminal._no_error_of_beam(record(logging.ERROR, "other"))


THREADS = """
import threading
from pipelines import terminal
terminal.plain_threads()
for name in ("grpc._channel", "clip_transforms.engine"):
    module = {"__name__": name}
    exec("def run(): raise RuntimeError('a thread of ' + __name__)", module)
    thread = threading.Thread(target=module["run"])
    thread.start()
    thread.join()
"""


def test_only_threads_of_ours_print_why_they_died():
    done = run("-c", THREADS, timeout=60)
    assert "a thread of clip_transforms.engine" in done.stderr and "grpc" not in done.stderr


@pytest.mark.parametrize("name", ["DirectRunner", "fnapirunner", "SwitchingDirectRunner"])
def test_every_runner_of_this_process_is_the_one_whose_workers_end_with_it(name):
    pipeline = launch.make_pipeline(PipelineOptions(["--runner", name]))
    assert isinstance(pipeline.runner, launch._FnApiRunner)


class _Job:
    """A detached job. Its service breaks off while the launcher waits."""

    def __init__(self, options, state):
        self.options, self._state, self.run_folder = options, state, self
        self.closed = False

    def __or__(self, _):
        return None

    def run(self):
        return self

    def wait_until_finish(self):
        raise ConnectionError("socket closed")

    @property
    def state(self):
        if self._state is None:
            raise ConnectionError("socket closed")
        return self._state

    def close(self):
        self.closed = True


@pytest.mark.parametrize("state, closed", [(None, False), ("RUNNING", False), ("FAILED", True)])
def test_the_folder_of_a_job_that_may_live_is_left_to_it(state, closed, capfd):
    job = _Job(PipelineOptions(["--runner", "PortableRunner"]), state)
    assert launch.launch(job, job) is False
    assert job.closed is closed
    assert ("the job may go on without this command" in capfd.readouterr().err) is not closed
