"""The same dataset on every runner that this machine can start; nothing large crosses a stage; workers end in time."""

import json
import os
import signal
import subprocess

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics.monitoring_infos import extract_distribution
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import (
    ROOT,
    command,
    files_of,
    make_folder,
    make_parquet,
    make_tar,
    pair,
    rows_of,
    write_odd_tar,
    write_tar,
)
from forked import Process
from servers import wait_for

from clip_transforms import ClipSpec, EmbedShards, LabelEmbeddings, Taxonomy
from pipelines.embed import main as embed


def kill_when(condition, module, argv, env):
    """Start a command and SIGKILL it as soon as a condition holds."""
    process = Process("-m", module, *argv, cwd=ROOT, env=env)
    try:
        wait_for(condition, 60)
    finally:
        process.kill()
        process.wait()


TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    for i in range(5):
        make_tar(path / f"{i}.tar", 9, first=9 * i)
    write_odd_tar(path / "odd.tar")
    make_parquet(path / "p.parquet", 30, first=50)
    make_folder(path / "photos", 8, first=90)
    return [path / "*.tar", path / "p.parquet", path / "photos"]


@pytest.fixture(scope="module")
def argv(inputs, tiny_checkpoint, tmp_path_factory):
    taxonomy = tmp_path_factory.mktemp("taxonomy") / "colors.txt"
    taxonomy.write_text("red\nblue\n")
    flags = ["--model", tiny_checkpoint, "--precision=fp32", "--taxonomy", taxonomy, "--max_reject_fraction", 0.5]
    return [*map(str, ["--input", *inputs, *flags])]


@pytest.fixture(scope="module")
def reference(argv, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    embed([*argv, "--output", str(out)])
    return out


def assert_same(ours, theirs):
    """Same rows, strings, rejects and counts; embeddings within 1e-5."""
    for kind in ("embeddings", "labels/colors", "rejects"):
        a, b = rows_of(ours, kind), rows_of(theirs, kind)
        assert len(a) == len(b) > 0
        for left, right in zip(a, b, strict=True):
            for name in left:
                if name in ("image_embedding", "caption_embedding") and left[name] is not None:
                    np.testing.assert_allclose(left[name], right[name], atol=1e-5)
                elif isinstance(left[name], float):
                    assert left[name] == pytest.approx(right[name], abs=1e-3)
                elif name != "top":
                    assert left[name] == right[name]
    a, b = (json.loads((out / "run.json").read_text()) for out in (ours, theirs))
    assert a["input"] == b["input"] and a["dataset"] == b["dataset"]
    assert (ours / "_SUCCESS").exists() and not (ours / "_temporary").exists()


@pytest.mark.slow  # two workers of Beam, which import everything anew; the portable runner below has workers too
@pytest.mark.timeout(200)
def test_two_processes_give_the_same_dataset(argv, reference, tmp_path):
    done = command("pipelines.embed", *argv, "--output", tmp_path / "out", *TWO_PROCESSES, timeout=150)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(tmp_path / "out", reference)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["speed"]["processes"] == 2 and "ceiling" not in run["speed"]


@pytest.mark.slow  # two more workers of Beam, which import everything anew: ten seconds
@pytest.mark.timeout(200)
def test_two_processes_label_too(argv, reference, tmp_path):
    embed([*argv, "--output", str(tmp_path / "out")])
    (tmp_path / "new.txt").write_text("cat\nCAT\n")
    labelled = ["--input", tmp_path / "out", "--taxonomy", tmp_path / "new.txt"]
    done = command("pipelines.label", *labelled, *TWO_PROCESSES, timeout=100)
    twins = "warning: taxonomy new: this model cannot tell these classes apart: 'cat' and 'CAT'\n"
    assert (done.returncode, done.stderr) == (0, twins), "a worker's warning is one line"
    assert len(rows_of(tmp_path / "out", "labels/new")) == len(rows_of(reference))


@pytest.mark.timeout(200)
def test_the_portable_runner_with_external_workers_gives_the_same_dataset(argv, reference, service, tmp_path):
    done = command("pipelines.embed", *argv, "--output", tmp_path / "out", *service, timeout=150)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "out", reference)


@pytest.mark.slow  # ten seconds; by default embed runs on this runner, and label with two processes
@pytest.mark.timeout(200)
def test_the_portable_runner_with_external_workers_labels_too(argv, service, tmp_path):
    embed([*argv, "--output", str(tmp_path / "out")])
    (tmp_path / "new.txt").write_text("cat\ndog\n")
    labelled = ["--input", tmp_path / "out", "--taxonomy", tmp_path / "new.txt"]
    done = command("pipelines.label", *labelled, *service, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out", "labels/new")) == len(rows_of(tmp_path / "out"))


@pytest.fixture
def started(tiny_checkpoint, slow_commits, tmp_path):
    """Starts a run of some seconds over eight shards, and returns its launcher as soon as two parts are there."""
    for i in range(8):
        make_tar(tmp_path / f"{i}.tar", 5, first=5 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "slow")]
    argv += ["--model", tiny_checkpoint, "--precision=fp32"]

    def start(flags):
        launcher = Process(
            "-m",
            "pipelines.embed",
            *argv,
            *flags,
            cwd=ROOT,
            env=slow_commits,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: len(list((tmp_path / "slow").glob("embeddings/*.parquet"))) >= 2, 100)
        return launcher, argv

    return start


@pytest.mark.slow  # ten seconds of a job each
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["KILL", "INT"])
def test_a_detached_job_finishes_without_its_launcher(number, started, service, tmp_path):
    out = tmp_path / "slow"
    launcher, _ = started(service)
    launcher.send_signal(number)
    launcher.wait(timeout=10)
    launcher.stderr.close()
    assert not (out / "run.json").exists()
    wait_for(lambda: (out / "_SUCCESS").exists(), 100)
    wait_for(lambda: not (out / "_temporary").exists(), 10)
    run = json.loads((out / "run.json").read_text())
    assert run["complete"] and run["input"]["samples"] == len(rows_of(out)) == 40


def test_nothing_larger_than_four_kilobytes_crosses_a_stage(tiny_checkpoint, tmp_path):
    for i in range(150):
        write_tar(tmp_path / f"{i:05d}.tar", pair("a", i))
    classes = [f"class number {i}" for i in range(300)]
    out, spec = str(tmp_path / "out"), ClipSpec(tiny_checkpoint, precision="fp32")
    many, more = (Taxonomy.from_json(name, {"classes": classes}) for name in ("many", "more"))
    for transform in (EmbedShards([str(tmp_path / "*.tar")], out, spec, [many]), LabelEmbeddings(out, [more])):
        sizes = largest_elements(transform)
        assert len(sizes) > 5, "no size metrics, so that this test would say nothing"
        assert max(sizes.values()) < 4096, sizes


def largest_elements(transform):
    """PCollection → the largest of the encoded sizes that the runner sampled."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | transform
    infos = pipeline.run().monitoring_infos()
    found = [info for info in infos if info.urn == "beam:metric:sampled_byte_size:v1"]
    return {info.labels["PCOLLECTION"]: extract_distribution(info)[3] for info in found}


def children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow  # a run and a rerun each, with workers that import everything anew: ten seconds
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["KILL", "TERM", "INT"])
def test_workers_end_with_their_launcher(number, started, tmp_path):
    out = tmp_path / "slow"
    launcher, argv = started(TWO_PROCESSES)
    workers = children(launcher.pid)
    assert len(workers) >= 2
    # A terminal sends Ctrl-C to the workers too.
    os.killpg(launcher.pid, number) if number == signal.SIGINT else launcher.send_signal(number)
    launcher.wait(timeout=10)
    wait_for(lambda: not any(map(alive, workers)), 10)
    assert 2 <= len(list((out / "embeddings").glob("*.parquet"))) < 8
    if number != signal.SIGKILL:
        assert launcher.returncode == 1
        (line,) = launcher.stderr.read().strip().splitlines()
        assert line.startswith(f"ended by {number.name}") and "the same command goes on from there" in line
    launcher.stderr.close()
    embed(argv)
    assert len(rows_of(out)) == 40 and not (out / "_temporary").exists()
    assert len(files_of(out)) == 16


def test_workers_of_options_are_the_number_of_tasks():
    from clip_transforms.workers.runner import workers_of

    two = ["--direct_num_workers=2", "--direct_running_mode"]
    many = ["--max_num_workers=20", "--num_workers=5"]
    assert workers_of(PipelineOptions([])) == 0, "this process does it all"
    assert workers_of(PipelineOptions([*two, "multi_processing"])) == 2
    assert workers_of(PipelineOptions([*two, "in_memory"])) == 0, "in memory it does, whatever the flag says"
    assert workers_of(PipelineOptions(["--direct_num_workers=0", *two[1:], "multi_processing"])) == os.cpu_count()
    assert workers_of(PipelineOptions(["--runner=DataflowRunner", *many])) == 20
    assert workers_of(PipelineOptions(many)) == 0, "flags of other runners"
