"""A worker that is killed in the middle of a unit, under each runner that has workers; the rerun changes no byte."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, command, files_of, make_tar
from test_runners import TWO_PROCESSES, alive, children, portable, wait_for


def kill_a_worker(tmp_path, checkpoint, mode, env, workers_of):
    """Kill one of the workers as soon as parts appear; then the launcher, if it waits for the dead; then run again."""
    for i in range(16):
        make_tar(tmp_path / f"{i:02d}.tar", 20, first=20 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--model", checkpoint, "--precision=fp32", *mode]
    calm = command("pipelines.embed", *argv, "--output", tmp_path / "calm", timeout=150)
    assert calm.returncode == 0, calm.stderr
    whole, out = files_of(tmp_path / "calm"), tmp_path / "slow"
    launcher = subprocess.Popen(
        [sys.executable, "-m", "pipelines.embed", *argv, "--output", str(out)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(list(out.glob("embeddings/*.parquet"))) >= 2, 100)
        victim = workers_of(launcher.pid)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not alive(victim), 10)
        with contextlib.suppress(subprocess.TimeoutExpired):  # Beam waits for ever for a worker that died
            assert launcher.wait(timeout=5) == 1
        assert not (out / "_SUCCESS").exists()
    finally:
        launcher.kill()
        launcher.wait()
    found = files_of(out)
    assert 0 < len(found) < len(whole) and all(whole[name] == data for name, data in found.items())
    return argv, out, whole


def command_line(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()


def assert_goes_on(argv, out, whole):
    time.sleep(1)  # the other workers see within half a second that their launcher is gone
    again = command("pipelines.embed", *argv, "--output", out, timeout=150)
    assert again.returncode == 0, again.stderr
    assert files_of(out) == whole and (out / "_SUCCESS").exists()


@pytest.mark.slow  # three runs with two worker processes each
@pytest.mark.timeout(400)
def test_a_worker_process_killed_in_mid_unit(tmp_path, tiny_checkpoint, slow_commits):
    found = kill_a_worker(tmp_path, tiny_checkpoint, TWO_PROCESSES, slow_commits, children)
    assert_goes_on(*found)
    assert not (tmp_path / "slow" / "_temporary").exists()


@pytest.mark.slow  # three runs against a job service and a pool of workers
@pytest.mark.timeout(600)
def test_an_external_worker_killed_in_mid_unit(tmp_path, tiny_checkpoint, slow_commits):
    me = os.getpid()

    def pooled(_):
        pool = [pid for pid in children(me) if alive(pid) and "worker_pool_main" in command_line(pid)]
        return [worker for parent in pool for worker in children(parent)]

    with portable(slow_commits) as flags:
        argv, out, whole = kill_a_worker(tmp_path, tiny_checkpoint, flags, slow_commits, pooled)
    with portable() as flags:
        assert_goes_on([*argv[:4], *flags], out, whole)
