"""A command that waits for a cluster says so when nothing happens, and goes on waiting."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from array import array

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import command, make_tar
from forked import Process
from servers import portable, workers_of

from clip_transforms.run.run_folder import mark_begun
from pipelines import waiting

POOL = PipelineOptions(["--environment_type=EXTERNAL"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's temporary folder; what takes 60 s takes a tenth of a second."""
    monkeypatch.setattr(waiting, "SECONDS", 0.1)
    (tmp_path / "plan.parquet").touch()
    return tmp_path


def said_after(folder, options, act, capfd):
    with waiting.no_silent_wait(str(folder), options):
        act()
        time.sleep(0.5)
    return capfd.readouterr().err


def test_a_run_without_workers_says_so_once(folder, capfd):
    (line,) = said_after(folder, POOL, lambda: None, capfd).splitlines()
    assert line.startswith(
        "warning: no worker has begun in 0 s, and this command goes on waiting: either the worker pool's `python`"
    )
    (line,) = said_after(folder, PipelineOptions([]), lambda: None, capfd).splitlines()
    assert "may still be starting workers" in line and "pool" not in line


def test_a_run_with_a_worker_says_nothing(folder, capfd):
    mark_begun(str(folder))
    assert said_after(folder, POOL, lambda: None, capfd) == ""


def test_a_run_that_has_ended_says_so_if_its_job_does_not_end(folder, capfd):
    mark_begun(str(folder))

    def finish():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    (line,) = said_after(folder, POOL, finish, capfd).splitlines()
    assert "the run was complete 0 s ago, but the runner does not end the job" in line


IMPATIENT = """
import sys
import pipelines.waiting
pipelines.waiting.SECONDS = 2
from pipelines.embed import main
sys.exit(main(sys.argv[1:]))
"""


def first_line(stream, seconds):
    """The first line of a stream; empty if there is none in time."""
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else ""


@pytest.mark.slow  # a job service and a pool of its own: ten seconds
@pytest.mark.timeout(200)
def test_a_pool_whose_python_lacks_the_packages(tmp_path, tiny_checkpoint):
    make_tar(tmp_path / "0.tar", 3)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    argv = ["--input", tmp_path / "0.tar", "--output", tmp_path / "out", "--model", tiny_checkpoint]
    with (
        portable(pool_path=tmp_path / "bin") as flags,
        Process("-c", IMPATIENT, *argv, *flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run,
    ):
        try:
            line = first_line(run.stderr, 100)
            assert line.startswith("warning: no worker has begun in 2 s, and this command goes on waiting: either the")
            time.sleep(1)
            assert run.poll() is None, "it goes on waiting"
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(timeout=20)
            run.kill()


def waiting_in(pipe):
    """Number of bytes that nobody has read yet from a pipe, as /proc names it."""
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        number = array("i", [0])
        fcntl.ioctl(handle, termios.FIONREAD, number)
        return number[0]
    finally:
        os.close(handle)


@pytest.mark.slow  # ten seconds of a job
@pytest.mark.timeout(200)
def test_a_worker_prints_nothing_to_a_pool_that_reads_nothing(service, tmp_path, tiny_checkpoint):
    """Beam's pool gives its workers a pipe for their standard output. When it is full, they stop."""
    for i in range(4):
        make_tar(tmp_path / f"{i}.tar", 5, first=5 * i)
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:9000])
    argv = ["--input", tmp_path / "*.tar", "--output", tmp_path / "slow", "--model", tiny_checkpoint, *service]
    ended, printed = threading.Event(), {}

    def look():
        while not ended.wait(0.05):
            for pid in workers_of(service):
                with contextlib.suppress(OSError):  # it has ended
                    printed[pid] = waiting_in(f"/proc/{pid}/fd/1")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        done = command("pipelines.embed", *argv, timeout=150)
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 3, done.stderr
    assert printed and not any(printed.values()), printed
