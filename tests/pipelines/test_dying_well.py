"""A run may die at any moment, and two may run at once; afterwards the dataset is as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import time

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, files_of, make_folder, make_parquet, make_tar, rows_of
from forked import Process

from pipelines.embed import main as embed_main

TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]


def source(kind, path):
    if kind == "tars":
        for i in range(12):
            make_tar(path / f"in-{i}.tar", 40, first=40 * i)
        return path / "in-*.tar"
    if kind == "parquet":
        make_parquet(path / "a.parquet", 240, row_group_size=40)
        return make_parquet(path / "b.parquet", 240, first=240, row_group_size=40) and path / "*.parquet"
    for i in range(4):
        make_folder(path / f"in-{i}", 120, first=120 * i)
    return path / "in-*"


def start(argv, **kwargs):
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return Process("-m", "pipelines.embed", *argv, cwd=ROOT, text=True, **pipes, **kwargs)


def descendants(pid):
    """Return the process ids of all descendants of a process."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    found, rest = [], [pid]
    while rest:
        parent = rest.pop()
        new = [child for child, above in pairs if above == parent]
        found += new
        rest += new
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_and_check(kind, kills, tmp_path, checkpoint, taxonomy, mode=()):
    """Kill a run `kills` times at random moments, start it again each time, and compare with an undisturbed one."""
    argv = [*map(str, ["--input", source(kind, tmp_path), "--taxonomy", taxonomy])]
    argv += ["--model", checkpoint, "--precision=fp32"]
    assert embed_main([*argv, "--output", str(tmp_path / "calm"), *mode]) == 0
    whole = files_of(tmp_path / "calm")
    rng, out = random.Random(f"{kind} {kills} {mode}"), tmp_path / "killed"
    delays = []
    for _ in range(kills):
        process = start([*argv, "--output", out, *mode])
        # This covers the first import to the last step; a run over a complete dataset is short.
        delays.append(rng.uniform(0.5, 9 if mode else 6))
        time.sleep(delays[-1])
        workers = descendants(process.pid)
        process.kill()
        process.wait()
        process.stderr.close()
        for path, data in files_of(out).items():
            assert data == whole[path], f"{path} appeared before it was whole, after {delays[-1]:.2f} s"
        deadline = time.monotonic() + 10
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, workers)), "an orphan lives on"
        if rng.random() < 0.3 and files_of(out):  # so that the next run has something to do
            victim = rng.choice(sorted((out / "embeddings").glob("*.parquet")) or [None])
            if victim:
                victim.unlink()
    assert embed_main([*argv, "--output", str(out), *mode]) == 0
    assert files_of(out) == whole
    assert (out / "_SUCCESS").exists() and not (out / "_temporary").exists()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    run, calm_run = (json.loads((folder / "run.json").read_text()) for folder in (out, tmp_path / "calm"))
    assert run["input"] == calm_run["input"] and run["dataset"] == calm_run["dataset"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind, kills",
    [("tars", 2), *(pytest.param(kind, 1, marks=pytest.mark.slow) for kind in ("parquet", "folder"))],  # 6 s each
)
def test_four_kills_change_no_byte(kind, kills, tmp_path, tiny_checkpoint, taxonomy_file):
    kill_and_check(kind, kills, tmp_path, tiny_checkpoint, taxonomy_file)


@pytest.mark.slow  # fifty runs of some seconds each
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [(), TWO_PROCESSES], ids=["in memory", "two processes"])
@pytest.mark.parametrize("kind, kills", [("tars", 9), ("parquet", 8), ("folder", 8)])
def test_fifty_kills_change_no_byte(kind, kills, mode, tmp_path, tiny_checkpoint, taxonomy_file):
    kill_and_check(kind, kills, tmp_path, tiny_checkpoint, taxonomy_file, mode)


@pytest.fixture
def few(tiny_checkpoint, tmp_path):
    """The command line of a run of some seconds: five shards. With `slow_commits`, each part takes half a second."""
    for i in range(5):
        make_tar(tmp_path / f"in-{i}.tar", 5, first=5 * i)
    output = str(tmp_path / "slow")
    return ["--input", str(tmp_path / "in-*.tar"), "--output", output, "--model", tiny_checkpoint, "--precision=fp32"]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "terminal closed"]
)
def test_a_signal_ends_a_run_within_seconds_with_the_line_that_says_how_to_go_on(number, few, slow_commits, tmp_path):
    out = tmp_path / "slow"
    process = start(few, env=slow_commits)
    wait_for(lambda: list(out.glob("embeddings/*.parquet")))
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(timeout=10) == 1 and time.monotonic() - began < 10
    said = process.stderr.read()
    process.stderr.close()
    assert f"ended by {number.name}" in said and "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not (out / "_temporary").exists() and not (out / "_SUCCESS").exists()
    assert embed_main(few) == 0
    assert len(rows_of(out)) == 25


@pytest.fixture
def slow_end(slow_commits, tmp_path):
    """The environment of `slow_commits`, where removing a run's folder also takes a second.

    In that second Beam's threads notice that their workers are dead.
    """
    hook = slow_commits["PYTHONPATH"].split(os.pathsep)[0]
    path = tmp_path / "hook"
    path.mkdir()
    (path / "sitecustomize.py").write_text(
        f"exec(open({os.path.join(hook, 'sitecustomize.py')!r}).read())\n"
        "rmdir = os.rmdir\n"
        "def slow_rmdir(*args, **kwargs):\n"
        "    time.sleep(1)\n"
        "    return rmdir(*args, **kwargs)\n"
        "os.rmdir = slow_rmdir\n"
    )
    return slow_commits | {"PYTHONPATH": f"{path}{os.pathsep}{slow_commits['PYTHONPATH']}"}


def interrupt(argv, out, env, whole_group):
    """Start a run with two workers of Beam's, press Ctrl-C when parts appear, and return its stderr."""
    process = start([*argv, *TWO_PROCESSES], env=env, start_new_session=True)
    try:
        wait_for(lambda: len(list(out.glob("embeddings/*.parquet"))) >= 2)
        os.killpg(process.pid, signal.SIGINT) if whole_group else process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    return said


ENDED = "\nended by SIGINT; what is committed stays; the same command goes on from there\n"


@pytest.mark.slow  # two of Beam's workers that start and end each time: twelve seconds
@pytest.mark.timeout(200)
@pytest.mark.parametrize("whole_group", [True, False], ids=["as a terminal does", "to the launcher alone"])
def test_ctrl_c_with_beams_workers_is_one_sentence_and_nothing_else(whole_group, few, slow_end, tmp_path):
    assert interrupt(few, tmp_path / "slow", slow_end, whole_group) == ENDED
    assert not (tmp_path / "slow" / "_temporary").exists()


@pytest.mark.slow  # ten runs of ten seconds each, without the artificial second
@pytest.mark.timeout(600)
def test_ctrl_c_with_beams_workers_is_one_sentence_every_time(few, slow_commits, tmp_path):
    for number in range(10):
        out = tmp_path / f"slow{number}" / "slow"
        argv = [*few, "--output", str(out)]
        assert interrupt(argv, out, slow_commits, whole_group=number % 2 == 0) == ENDED, number


def test_a_signal_after_the_run_does_not_say_that_nothing_was_started(monkeypatch):
    from pipelines.command import end_after_run, end_before_start
    from pipelines.launch import end_at_signals

    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler, after in ((end_before_start, end_after_run), (signal.SIG_DFL, signal.SIG_DFL)):
            signal.signal(signal.SIGTERM, handler)
            with end_at_signals("go on", lambda: None):
                assert signal.getsignal(signal.SIGTERM) not in (handler, after)
            assert signal.getsignal(signal.SIGTERM) == after
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_before_anything_was_started_is_one_line_too(number, tmp_path, tiny_checkpoint):
    make_tar(tmp_path / "a.tar", 2)
    argv = ["--input", tmp_path / "a.tar", "--output", tmp_path / "out", "--model", tiny_checkpoint]
    process = start([*argv, "--precision=fp32"])
    wait_for(lambda: catches(process.pid, signal.SIGTERM))
    process.send_signal(number)
    assert process.wait(timeout=10) == 1
    assert process.stderr.read().strip() == f"ended by {number.name}; nothing was started"
    process.stderr.close()
    assert not (tmp_path / "out").exists()


def catches(pid, number):
    """Return whether a process handles a signal itself; Python has no handler for SIGTERM."""
    with open(f"/proc/{pid}/status") as file:
        mask = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {seconds} s")
        time.sleep(0.02)


def test_two_runs_at_once_of_one_fingerprint_both_succeed(few, embed, slow_commits, tmp_path):
    out = tmp_path / "slow"
    embed(tmp_path / "in-*.tar", output=tmp_path / "calm")
    both = [start(few, env=slow_commits) for _ in range(2)]
    wait_for(lambda: len(list(out.glob("_temporary/*"))) == 2)
    for process in both:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert files_of(out) == files_of(tmp_path / "calm")
    assert (out / "_SUCCESS").exists() and not (out / "_temporary").exists()


def test_of_two_runs_at_once_of_two_fingerprints_the_later_one_stops(few, slow_commits, tmp_path):
    out = tmp_path / "slow"
    first = start(few, env=slow_commits)
    wait_for((out / "_dataset.json").exists)
    with pytest.raises(ValueError, match="--embedding_dtype was 'float32', but is now 'float16'"):
        embed_main([*few, "--embedding_dtype", "float16"])
    assert not (out / "_SUCCESS").exists()
    assert first.wait(timeout=100) == 0
    first.stderr.close()
    assert len(rows_of(out)) == 25


def test_a_run_planned_before_another_began_stops_too(tmp_path, tiny_checkpoint):
    import dataclasses

    from clip_transforms import ClipSpec
    from clip_transforms.run.begin import begin_run
    from clip_transforms.run.plan import plan_run
    from clip_transforms.run.settings import Settings

    make_tar(tmp_path / "a.tar", 2)
    settings = Settings((str(tmp_path / "a.tar"),), str(tmp_path / "out"), ClipSpec(tiny_checkpoint, precision="fp32"))
    early, late = plan_run(settings), plan_run(dataclasses.replace(settings, embedding_dtype="float16"))
    _, folder = begin_run(early, 1, ())
    with pytest.raises(ValueError, match="embedding_dtype"):
        begin_run(late, 1, ())
    folder.close()
    assert not (tmp_path / "out" / "_temporary").exists()


def test_the_parts_of_two_units_swapped_by_hand_are_done_again(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 3), make_tar(tmp_path / "b.tar", 3, first=9), output=out)
    before = files_of(out)
    a, b = sorted((out / "embeddings").glob("*.parquet"))
    os.rename(a, tmp_path / "x")
    os.rename(b, a)
    os.rename(tmp_path / "x", b)
    embed(tmp_path / "a.tar", tmp_path / "b.tar", output=out)
    assert files_of(out) == before
    for path in (out / "embeddings").glob("*.parquet"):
        pq.read_table(path)
