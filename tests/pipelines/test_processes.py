"""--processes N: children of one command over one plan; the dataset is the same, and one that dies is named."""

import collections
import importlib
import json
import logging
import os
import queue
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, command, files_of, make_tar, rows_of, write_odd_tar
from forked import Process
from servers import wait_for
from test_runners import alive, assert_same, children

from clip_transforms.run import parent, processes
from clip_transforms.run.embed_units import PROGRESS
from clip_transforms.run.summary import PartResult

TWO = ["--processes", "2"]


# The dataset


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    for i in range(11):
        make_tar(path / f"{i:02d}.tar", 8, first=8 * i)
    write_odd_tar(path / "odd.tar")
    return path / "*.tar"


@pytest.fixture(scope="module")
def reference(inputs, tiny_checkpoint, tmp_path_factory):
    from pipelines.embed import main

    folder = tmp_path_factory.mktemp("reference")
    taxonomy = folder / "colors.txt"
    taxonomy.write_text("red\nblue\n")
    flags = ["--model", tiny_checkpoint, "--precision=fp32", "--taxonomy", str(taxonomy), "--processes", "1"]
    assert main(["--input", str(inputs), "--output", str(folder / "out"), *flags]) == 0
    return folder / "out"


def at_once(monkeypatch, then=lambda process, number: None):
    """Hand the first tasks out when both processes are ready; `then` is told of every task and its number."""
    begin, waiting, numbers = processes._Process.begin, [], Counter()

    def hand_out(*told):
        waiting.append(told)
        if len(numbers) + len(waiting) >= 2:
            while waiting:
                process, *task = waiting.pop(0)
                begin(process, *task)
                numbers[process.name] += 1
                then(process, numbers[process.name])

    monkeypatch.setattr(processes._Process, "begin", hand_out)


@pytest.mark.timeout(200)
def test_two_processes_give_the_same_dataset(embed, inputs, reference, tmp_path, monkeypatch):
    at_once(monkeypatch)
    before = Counter(PROGRESS)
    flags = ["--taxonomy", reference.parent / "colors.txt", *TWO]
    embed(inputs, output=tmp_path / "out", flags=flags)
    assert_same(tmp_path / "out", reference)
    assert files_of(tmp_path / "out").keys() == files_of(reference).keys()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["speed"]["processes"] == 2 and "ceiling" not in run["speed"]
    done = Counter(PROGRESS) - before
    assert (done["units"], done["samples"]) == (12, 91) and done["bytes"] > 0, "the bar knows of every sample"


@pytest.mark.timeout(200)
@pytest.mark.slow  # processes of ours, which import everything anew: ten seconds
def test_a_process_that_is_killed_is_named_and_a_rerun_does_its_units(embed, inputs, reference, tmp_path, monkeypatch):
    killed = []

    def kill(process, number):
        if process.name == "process 2 of 2" and number == 2:  # it has embedded one task, and begins with another
            killed.append((process, process._shards[0]))
            os.kill(process.pid, signal.SIGKILL)

    out, flags = tmp_path / "out", ["--taxonomy", reference.parent / "colors.txt"]
    with monkeypatch.context() as patch:
        at_once(patch, then=kill)
        said, complain = [], []
        patch.setattr("pipelines.launch.complain", complain.append)
        patch.setattr(processes._LOGGER, "warning", lambda text, *args: said.append(text % args))
        embed(inputs, output=out, flags=[*flags, *TWO], code=1)
    ((process, shard),) = killed
    name = f"process 2 of 2 (pid {process.pid}) was killed by SIGKILL in the middle of {shard}"
    assert said == ["process 2 of 2 died; the others go on with what is left"]
    cure = " (if memory ran out: fewer --processes need less)"
    assert complain[0].startswith(f"the run failed: {name}{cure}") and complain[0].endswith(
        "what is committed stays; the same command goes on from there"
    )
    assert not (out / "_SUCCESS").exists() and not (out / "_temporary").exists() and not (out / "run.json").exists()
    there = {row["shard"] for row in rows_of(out)}
    assert shard not in there and len(there) >= 9, "the other process did what was left"
    before = {name: data for name, data in files_of(out).items()}
    embed(inputs, output=out, flags=flags)
    units = json.loads((out / "run.json").read_text())["units"]
    assert units["committed"] == 12 - len(there) and units["skipped"] == len(there)
    assert before.items() <= files_of(out).items()
    assert_same(out, reference)


@pytest.mark.timeout(200)
@pytest.mark.slow  # processes of ours, which import everything anew: ten seconds
def test_what_goes_wrong_in_a_process_is_said_as_if_it_had_gone_wrong_in_this_one(
    embed, inputs, tmp_path, tiny_checkpoint, monkeypatch
):
    embed_shards = importlib.import_module("clip_transforms.embed_shards")

    said, begin = [], embed_shards.begin_run

    def spoil(plan, *args):
        result = begin(plan, *args)
        with open(plan.checkpoint.files[0], "r+b") as file:
            file.truncate(1000)
        return result

    monkeypatch.setattr(embed_shards, "begin_run", spoil)
    monkeypatch.setattr("pipelines.launch.complain", said.append)
    whole = Path(tiny_checkpoint).read_bytes()
    for flags in ([], TWO):
        model = tmp_path / "model.safetensors"
        model.write_bytes(whole)
        embed(inputs, output=tmp_path / "out", flags=["--model", model, *flags], code=1)
    assert said[0] == said[1] and "model.safetensors" in said[0]


@pytest.mark.slow  # a run and a rerun each: six seconds
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["KILL", "TERM", "INT"])
@pytest.mark.timeout(200)
def test_the_processes_end_with_their_launcher(number, tiny_checkpoint, tmp_path):
    for i in range(40):
        make_tar(tmp_path / f"{i:02d}.tar", 60, first=60 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "out")]
    argv += ["--model", tiny_checkpoint, "--precision=fp32"]
    launcher = Process(
        "-m",
        "pipelines.embed",
        *argv,
        *TWO,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("embeddings/*.parquet"))) >= 2, 100)
        workers = children(launcher.pid)
        assert len(workers) == 2
        # A scheduler, or a terminal, sends its signals to the processes too.
        launcher.kill() if number == signal.SIGKILL else os.killpg(launcher.pid, number)
        said = launcher.communicate(timeout=10)[1]
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: not any(map(alive, workers)), 10)
    if number != signal.SIGKILL:
        assert launcher.returncode == 1
        assert said.strip().splitlines()[-1].startswith(f"ended by {number.name}")
        assert "Traceback" not in said
    if number == signal.SIGTERM:
        assert command("pipelines.embed", *argv, *TWO, timeout=150).returncode == 0
        assert len(rows_of(tmp_path / "out")) == 2400 and not (tmp_path / "out" / "_temporary").exists()


# What they tell


class _Told:
    """A process that tells what a test wants it to."""

    name, pid, done, dismissed, place = "process 1 of 1", 7, 0, False, "in the middle of a.tar"

    def __init__(self, *messages):
        self.heard = queue.SimpleQueue()
        for message in messages:
            self.heard.put((self, *message))

    def hand_out(self, progress):
        return processes._hand_out([], None, self.heard, [self], progress)


def test_results_progress_and_warnings_are_passed_on(caplog):
    result, progress = PartResult("p", {}, {}, "fp32 on cpu"), Counter(samples=1)
    said = ("log", ("clip_transforms.storage", logging.WARNING, "%s", "100% of a disk is full"))
    told = _Told(said, ("progress", Counter(samples=4)), ("result", result), ("ended", 3))
    results = told.hand_out(progress)
    assert next(results) is result and progress == {"samples": 5} and told.done == 1
    with pytest.raises(ChildProcessError, match=r"process 1 of 1 \(pid 7\) ended with exit code 3 in the middle of"):
        next(results)
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("clip_transforms.storage", "100% of a disk is full")]


class _OnGpu(processes._Process):
    def __init__(self, gpu):
        self.name, self.pid, self.gpu, self.told = f"on {gpu}", 7, gpu, []
        self.done, self.dismissed, self.ended, self._task, self._shards = 0, False, False, None, None

    def tell(self, what):
        self.told.append(what)


def test_a_process_that_died_does_not_count_as_one_that_goes_on(caplog):
    dead, full, other = (_OnGpu(gpu) for gpu in ("0", "0", "1"))
    heard = queue.SimpleQueue()
    for said in ((dead, "ended", -9), (full, "full", None), (full, "ended", 0), (other, "ended", 0)):
        heard.put(said)
    with pytest.raises(ChildProcessError, match="on 0 .* was killed by SIGKILL"):
        list(processes._hand_out(collections.deque(), None, heard, [dead, full, other], Counter()))
    assert (dead.told, full.told, other.told) == ([], [False], [])
    assert not any("no room" in message for message in caplog.messages)


class _AwkwardError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_every_error_arrives_also_one_that_does_not_pickle():
    error = OSError(28, "No space left on device", "/x")
    assert parent.sendable(error) is error
    sent = parent.sendable(_AwkwardError(1, 2))
    assert type(sent) is RuntimeError and str(sent) == "_AwkwardError: 1 and 2"
    with pytest.raises(RuntimeError, match="_AwkwardError") as raised:
        next(_Told(("error", (sent, "Traceback of the process"))).hand_out(Counter()))
    assert "Traceback of the process" in str(raised.value.__cause__)


def test_a_process_without_a_launcher_ends_at_once():
    done = command("clip_transforms.run.child", 1, timeout=30, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
