"""--feeders N: processes without a model that do everything but the forward passes; the dataset is the same."""

import gc
import json
import os
import signal
import subprocess
from collections import Counter

import pytest
from conftest import ROOT, files_of, make_tar, write_odd_tar
from forked import Process
from servers import wait_for
from test_runners import alive, children

from clip_transforms import ClipSpec, embed_shards
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.taxonomy import as_taxonomies
from clip_transforms.run import feeders
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import PROGRESS, embed_run_classes, embed_task, load_embedder
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import ReaderOptions

TWO = ["--feeders", "2"]
# Feeders that import torch fail.
NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise AssertionError("a feeder imports torch")

if "clip_transforms.run.feeder" in sys.orig_argv:
    sys.meta_path.insert(0, NoTorch())
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    for i in range(9):
        make_tar(path / f"{i:02d}.tar", 8, first=8 * i)
    write_odd_tar(path / "odd.tar")
    (path / "cut.tar").write_bytes((path / "00.tar").read_bytes()[:9_000])
    return path


@pytest.fixture(scope="module")
def settings(inputs, tiny_checkpoint):
    taxonomy = inputs / "colors.txt"
    taxonomy.write_text("red\nblue\n")
    reader = ReaderOptions(captions="all")
    return {
        "inputs": inputs / "*.tar",
        "model": ClipSpec(tiny_checkpoint, device="cpu", precision="fp32"),
        "taxonomies": [taxonomy],
        "reader": reader,
        "batch_size": 4,
        "allow_damaged_shards": True,
        "max_reject_fraction": 1.0,
    }


@pytest.fixture(scope="module")
def reference(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    embed_shards(output=out, **settings)
    return files_of(out)


def started(monkeypatch):
    """The feeders that are started from now on."""
    found, start = [], feeders._Feeder.__init__

    def remember(self, *args):
        start(self, *args)
        found.append(self)

    monkeypatch.setattr(feeders._Feeder, "__init__", remember)
    return found


def ended(processes):
    return [process._popen.poll() is not None for process in processes]


@pytest.mark.timeout(100)
def test_feeders_give_the_same_bytes_and_end_with_the_run(settings, reference, tmp_path, monkeypatch):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(NO_TORCH)
    monkeypatch.syspath_prepend(tmp_path / "hook")
    made, before = started(monkeypatch), Counter(PROGRESS)
    run = embed_shards(output=tmp_path / "out", feeders=2, **settings)
    assert files_of(tmp_path / "out") == reference
    assert [feeder.name for feeder in made] == ["feeder 1 of 2", "feeder 2 of 2"]
    gc.collect()
    assert ended(made) == [True, True]
    done = Counter(PROGRESS) - before
    assert (done["units"], done["samples"]) == (11, run["speed"]["samples"]) and done["bytes"] > 0
    assert run["speed"]["processes"] == 1
    assert {"task", "forward", "decode", "read"} <= run["speed"]["seconds"].keys()


@pytest.mark.timeout(100)
def test_results_come_in_the_order_of_the_units_and_the_last_has_the_seconds(settings, tmp_path, monkeypatch):
    results, embed = [], feeders.Feeders.embed

    def remember(self, *args):
        for result in embed(self, *args):
            results.append(result)
            yield result

    monkeypatch.setattr(feeders.Feeders, "embed", remember)
    embed_shards(output=tmp_path / "out", feeders=2, **settings)
    names = [result.path.rpartition("/")[2] for result in results]
    assert names == sorted(path.name for path in (tmp_path / "out" / "embeddings").iterdir()) and len(names) == 11
    assert [bool(result.seconds) for result in results] == [False] * 10 + [True]
    assert len({result.process for result in results}) == 1


@pytest.mark.timeout(100)
def test_one_unit_needs_no_feeder(settings, inputs, tmp_path, monkeypatch):
    made = started(monkeypatch)
    run = embed_shards(output=tmp_path / "out", feeders=2, **{**settings, "inputs": inputs / "00.tar"})
    assert run["complete"] and made == []


@pytest.mark.timeout(100)
def test_a_feeder_that_is_killed_ends_the_run_and_is_named(embed, inputs, tmp_path, tiny_checkpoint, monkeypatch):
    made, tell, said = started(monkeypatch), feeders._Feeder.tell, []

    def kill(self, what):
        tell(self, what)
        if what[0] == "unit" and len(self.places) == 1 and self.places[0] >= 4 and not said:
            said.append((self, what[1].shard))
            os.kill(self.pid, signal.SIGKILL)

    argv = ["--model", tiny_checkpoint, "--precision=fp32"]
    embed(inputs / "0*.tar", output=tmp_path / "alone", flags=argv)
    complained = []
    with monkeypatch.context() as patch:
        patch.setattr(feeders._Feeder, "tell", kill)
        patch.setattr("pipelines.launch.complain", complained.append)
        embed(inputs / "0*.tar", output=tmp_path / "out", flags=[*argv, *TWO], code=1)
    ((feeder, shard),) = said
    name = f"{feeder.name} (pid {feeder.pid}) was killed by SIGKILL in the middle of {shard}"
    cure = (
        "(if memory ran out: fewer --feeders need less); what is committed stays; the same command goes on from there"
    )
    assert complained == [f"the run failed: {name} {cure}"]
    assert ended(made) == [True, True] and not (tmp_path / "out" / "_SUCCESS").exists()
    embed(inputs / "0*.tar", output=tmp_path / "out", flags=[*argv, *TWO])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


@pytest.mark.timeout(100)
def test_a_task_that_is_tried_again_gets_new_feeders(settings, reference, tmp_path, monkeypatch):
    made, tell = started(monkeypatch), feeders._Feeder.tell

    def kill(self, what):
        tell(self, what)
        if self in made[:2] and what[0] == "unit" and len(self.places) == 1 and self.places[0] >= 4:
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(feeders._Feeder, "tell", kill)
    plan = plan_run(Settings(**_as_settings(settings, tmp_path / "out")))
    job, folder = begin_run(plan, 0, (), feeders=2)
    with folder:
        classes, embedder = embed_run_classes(job), load_embedder(job)
        with pytest.raises(ChildProcessError, match="was killed by SIGKILL in the middle of "):
            list(embed_task((0, 11), job, embedder, classes))
        assert ended(made) == [True, True]
        results = list(embed_task((0, 11), job, embedder, classes))
    assert len(results) == 11 and len(made) == 4
    parts = {name: data for name, data in files_of(tmp_path / "out").items() if name.endswith(".parquet")}
    assert parts == {name: data for name, data in reference.items() if name in parts} and len(parts) >= 33


def _as_settings(settings, output):
    inputs, taxonomies = (str(settings["inputs"]),), as_taxonomies(settings["taxonomies"])
    return {**settings, "inputs": inputs, "output": str(output), "taxonomies": taxonomies, "feeders": 2}


@pytest.mark.timeout(100)
def test_an_error_of_the_model_ends_the_feeders_and_is_raised_here(settings, tmp_path, monkeypatch):
    made, embed, calls = started(monkeypatch), ClipModel.embed_images, Counter()

    def fail(self, *args, **more):
        calls["batches"] += 1
        if calls["batches"] == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return embed(self, *args, **more)

    monkeypatch.setattr(ClipModel, "embed_images", fail)
    with pytest.raises(RuntimeError, match="^CUDA error: an illegal memory access"):
        embed_shards(output=tmp_path / "out", feeders=2, **settings)
    assert ended(made) == [True, True] and not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.timeout(100)
def test_an_error_in_a_feeder_is_raised_here_with_its_name(settings, inputs, tmp_path, monkeypatch):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'clip_transforms.run.feeder' in sys.orig_argv:\n"
        "    import clip_transforms.engine.rows as rows\n"
        "    def finish_batch(*args, **more): raise OSError(28, 'No space left on device', '/out/x.parquet')\n"
        "    rows.finish_batch = finish_batch\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "hook")
    with pytest.raises(OSError, match="No space left on device: '/out/x.parquet'") as raised:
        embed_shards(output=tmp_path / "out", feeders=2, **settings)
    assert str(raised.value.__cause__).startswith("in feeder ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["KILL", "INT"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.slow  # runs in processes of their own, which import everything anew: ten seconds each
@pytest.mark.timeout(200)
def test_the_feeders_end_with_the_command(number, processes, tiny_checkpoint, tmp_path):
    for i in range(40):
        make_tar(tmp_path / f"{i:02d}.tar", 60, first=60 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "out"), "--processes", str(processes)]
    argv += ["--model", tiny_checkpoint, "--precision=fp32", *TWO]
    launcher = Process(
        "-m", "pipelines.embed", *argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("embeddings/*.parquet"))) >= 2, 100)
        started = children(launcher.pid)
        started += [pid for child in started for pid in children(child)]
        assert len(started) == (2 if processes == 1 else 6)
        launcher.send_signal(number)
        said = launcher.communicate(timeout=10)[1]
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: not any(map(alive, started)), 10)
    if number == signal.SIGINT:
        assert said.strip().splitlines()[-1].startswith("ended by SIGINT") and "Traceback" not in said
        assert not (tmp_path / "out" / "_temporary").exists()


@pytest.mark.slow  # two processes and four feeders, which import everything anew: ten seconds
@pytest.mark.timeout(200)
def test_each_process_has_feeders_of_its_own(embed, inputs, tiny_checkpoint, tmp_path):
    argv = ["--model", tiny_checkpoint, "--precision=fp32"]
    embed(inputs / "0*.tar", output=tmp_path / "one", flags=[*argv, "--processes=2"])
    embed(inputs / "0*.tar", output=tmp_path / "out", flags=[*argv, "--processes=2", *TWO])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["units"]["committed"] == 9
