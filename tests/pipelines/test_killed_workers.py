"""Workers that are killed or fail, with every runner that has workers: one sentence, and a rerun changes no byte."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT, command, files_of, make_tar
from forked import Process, run
from servers import portable, wait_for, workers_of
from test_runners import TWO_PROCESSES, alive, children

from pipelines import launch


def kill_a_worker(tmp_path, checkpoint, mode, env, workers_of):
    """Kill one of the workers when parts appear, then the launcher if it still waits, and return the command line."""
    for i in range(16):
        make_tar(tmp_path / f"{i:02d}.tar", 20, first=20 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--model", checkpoint, "--precision=fp32", *mode]
    calm = command("pipelines.embed", *argv, "--output", tmp_path / "calm", timeout=150)
    assert calm.returncode == 0, calm.stderr
    whole, out = files_of(tmp_path / "calm"), tmp_path / "slow"
    launcher = Process(
        "-m",
        "pipelines.embed",
        *argv,
        "--output",
        str(out),
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
        with contextlib.suppress(subprocess.TimeoutExpired):  # a job service may wait forever for a dead worker
            assert launcher.wait(timeout=5) == 1
        assert not (out / "_SUCCESS").exists()
    finally:
        launcher.kill()
        launcher.wait()
    found = files_of(out)
    assert 0 < len(found) < len(whole) and all(whole[name] == data for name, data in found.items())
    return argv, out, whole


def assert_goes_on(argv, out, whole):
    time.sleep(1)  # the other workers see within half a second that their launcher is gone
    again = command("pipelines.embed", *argv, "--output", out, timeout=150)
    assert again.returncode == 0, again.stderr
    assert files_of(out) == whole and (out / "_SUCCESS").exists()


GO_ON = "what is committed stays; the same command goes on from there"


@pytest.fixture
def started(tiny_checkpoint, slow_commits, tmp_path):
    """Start a run of some seconds over eight shards, and return it when the first part appears."""
    for i in range(8):
        make_tar(tmp_path / f"{i}.tar", 5, first=5 * i)
    out = tmp_path / "slow"
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(out), "--model", tiny_checkpoint]

    def start(flags, **environment):
        launcher = Process(
            "-m",
            "pipelines.embed",
            *argv,
            *flags,
            cwd=ROOT,
            env=slow_commits | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: list(out.glob("embeddings/*.parquet")), 60)
        return launcher

    return start


@pytest.mark.parametrize(
    "flags, lines",
    [
        (
            ["--processes", "2"],
            [
                r"warning: process \d of 2 died; the others go on with what is left",
                r"the run failed: process \d of 2 \(pid \d+\) was killed by SIGKILL (in the middle of .*\.tar|"
                r"before its first unit|between two units) "
                rf"\(if memory ran out: fewer --processes need less\); {GO_ON}",
            ],
        ),
        pytest.param(
            TWO_PROCESSES,
            [
                r"the run failed: one of Beam's worker processes was killed by SIGKILL \(if memory ran out: fewer "
                rf"--direct_num_workers need less\); {GO_ON}"
            ],
        ),
    ],
    ids=["a process of ours", "a worker of Beam's"],
)
@pytest.mark.slow  # processes of ours, which import everything anew: ten seconds
def test_a_killed_process_is_reported_once_and_without_a_traceback(flags, lines, started, tmp_path):
    launcher = started(flags)
    os.kill(children(launcher.pid)[-1], signal.SIGKILL)
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 1
    assert re.fullmatch("".join(rf"\n?{line}\n" for line in lines), said), said
    assert not (tmp_path / "slow" / "_SUCCESS").exists() and not (tmp_path / "slow" / "_temporary").exists()


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """An environment where no part of an output called `full` can get its final name, as on a full disk."""
    path = tmp_path_factory.mktemp("hook")
    (path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "replace = os.replace\n"
        "def full(source, target):\n"
        "    if '/full/embeddings/' in str(target):\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))\n"
        "    return replace(source, target)\n"
        "os.replace = full\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}


MODES = {
    "in memory": [],
    "processes of ours": ["--processes", "2"],
    "workers of Beam's": TWO_PROCESSES,
    "threads of Beam's": ["--direct_running_mode", "multi_threading", "--direct_num_workers", "2"],
}


@pytest.mark.parametrize(
    "mode",
    # Workers import everything anew: ten seconds. How one that is killed is reported is tested above.
    [pytest.param(mode, marks=pytest.mark.slow if "of" in mode.split()[:2] else ()) for mode in MODES],
)
def test_any_other_error_is_one_line_too_unless_a_traceback_is_wanted(mode, full_disk, tiny_checkpoint, tmp_path):
    for i in range(4):
        make_tar(tmp_path / f"{i}.tar", 3, first=3 * i)
    argv = ["--input", tmp_path / "*.tar", "--output", tmp_path / "full", "--model", tiny_checkpoint, *MODES[mode]]
    done = command("pipelines.embed", *argv, env=full_disk)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("the run failed: ") and line.endswith(GO_ON) and "No space left on device" in line
    if mode == "in memory":
        done = command("pipelines.embed", *argv, env=full_disk | {"CLIP_TRANSFORMS_TRACEBACK": "1"})
        assert done.returncode == 1 and "Traceback" in done.stderr and "in full" in done.stderr


WAITS = """
import threading, time
from pipelines import launch
launch._PATIENCE_SECONDS = 0.1
def die():
    raise RuntimeError("Worker subprocess exited with return code -9")
with launch._watch_workers(lambda: print("cleaned up"), separate=True):
    threading.Thread(target=die).start()
    time.sleep(60)
"""


def test_a_run_that_waits_for_a_dead_worker_is_ended():
    done = run("-c", WAITS, cwd=ROOT, timeout=60)
    assert (
        done.returncode == 1 and "the run failed: one of Beam's worker processes was killed by SIGKILL" in done.stderr
    )
    assert "cleaned up" not in done.stdout, "nothing is printed after the sentence"


GRPC = """<_InactiveRpcError of RPC that terminated with:
\tstatus = StatusCode.UNAVAILABLE
\tdetails = "failed to connect to all addresses"
\tdebug_error_string = "UNAVAILABLE:x"
>"""
WORKER = """Traceback (most recent call last):
  File "a.py", line 1, in f
RuntimeError: clip.StorageError: out/x cannot be written to: disk full [while running 'EmbedShards/Embed']

"""


@pytest.mark.parametrize(
    "error, cause",
    [
        (RuntimeError(GRPC), "failed to connect to all addresses"),
        (RuntimeError(WORKER), "out/x cannot be written to: disk full"),
        (ValueError("Error: is a word of ours [while running 'Embed']"), "Error: is a word of ours"),
        (ValueError("two\nlines"), "lines"),
        (KeyError(), "KeyError"),
    ],
    ids=["gRPC", "a worker's traceback", "a step", "lines", "nothing"],
)
def test_the_cause_of_a_failure_is_one_line(error, cause):
    assert launch._cause_of_run(error) == cause


def test_an_error_that_points_at_an_earlier_one_gives_way_to_it(monkeypatch):
    """Prism asks again for a bundle that has failed, and sometimes it is this answer that ends the job."""
    again = "Bundle processing associated with i1 has failed. Check prior failing response and attached exception for"
    monkeypatch.setattr(launch, "DROPPED", [f"bundle i1 failed: {again} details.", f"bundle i1 failed:{WORKER}"])
    assert launch._cause_of_run(RuntimeError(f"{again} details.")) == "out/x cannot be written to: disk full"
    assert launch._cause_of_run(RuntimeError(WORKER.replace("disk full", "quota"))).endswith("to: quota")
    monkeypatch.setattr(launch, "DROPPED", [])
    assert launch._cause_of_run(RuntimeError(again)) == again


@pytest.mark.slow  # three runs with two worker processes each
@pytest.mark.timeout(400)
def test_a_worker_process_killed_in_mid_unit(tmp_path, tiny_checkpoint, slow_commits):
    found = kill_a_worker(tmp_path, tiny_checkpoint, TWO_PROCESSES, slow_commits, children)
    assert_goes_on(*found)
    assert not (tmp_path / "slow" / "_temporary").exists()


@pytest.mark.slow  # three runs against a job service and a pool of workers
@pytest.mark.timeout(600)
def test_an_external_worker_killed_in_mid_unit(tmp_path, tiny_checkpoint, slow_commits):
    with portable(slow_commits) as flags:
        argv, out, whole = kill_a_worker(
            tmp_path, tiny_checkpoint, flags, slow_commits, lambda _: list(workers_of(flags))
        )
    with portable() as flags:
        assert_goes_on([*argv[:5], *flags], out, whole)
