"""Every command on a cluster: any portable job service, such as that of Flink or Prism.

Environment variables name it: `CLIP_TRANSFORMS_TEST_RUNNER` and `_KILL`, or `_PRISM`. CONTRIBUTING.md says how.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import command, files_of, make_parquet, make_tar, pair, picture, write_tar
from forked import Process
from servers import answers, daemon, free_port, wait_for

import clip_transforms
from clip_transforms import (
    ClipSpec,
    deduplicate_embeddings,
    embed_shards,
    evaluate_embeddings,
    export_embeddings,
    filter_embeddings,
    index_embeddings,
    label_embeddings,
    report_embeddings,
    search_embeddings,
)

RUNNER, KILL, PRISM = (os.environ.get(f"CLIP_TRANSFORMS_TEST_{name}", "") for name in ("RUNNER", "KILL", "PRISM"))
pytestmark = [
    pytest.mark.slow,  # minutes on a cluster, which must be there
    pytest.mark.timeout(900),
    pytest.mark.skipif(not RUNNER + PRISM, reason="needs CLIP_TRANSFORMS_TEST_RUNNER, or CLIP_TRANSFORMS_TEST_PRISM"),
]
UNITS = 10
# command → its flags, the plain function, and the arguments that mean the same.
VERBS = {
    "filter": (
        ["--where", "animals.probability > 0.3", "--top_fraction", "0.7"],
        filter_embeddings,
        {"where": "animals.probability > 0.3", "top_fraction": 0.7},
    ),
    "deduplicate": (
        ["--by", "image", "--threshold", "0.99"],
        deduplicate_embeddings,
        {"by": "image", "threshold": 0.99},
    ),
    "export": (["--as", "webdataset"], export_embeddings, {"layout": "webdataset"}),
    "search": (["--text", "a red star", "--top_k", "5"], search_embeddings, {"text": "a red star", "top_k": 5}),
    "index": (["--kind", "flat"], index_embeddings, {"kind": "flat"}),
    "evaluate": (["--measure", "retrieval"], evaluate_embeddings, {"measure": "retrieval"}),
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """The flags of the runner."""
    if not PRISM:
        yield shlex.split(RUNNER)
        return
    port = free_port()
    argv = [PRISM, "--job_port", str(port), "--serve_http=false", "--idle_shutdown_timeout=-1s"]
    with daemon(tmp_path_factory.mktemp("prism") / "log", *argv):
        wait_for(lambda: answers(port), 20)
        yield ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{port}", "--environment_type=LOOPBACK"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight tars of 100 pairs, one with rejects, and a Parquet file."""
    folder = tmp_path_factory.mktemp("shards")
    for i in range(8):
        make_tar(folder / f"{i}.tar", 100, first=100 * i)
    odd = [*pair("x", 1), ("y.jpg", picture(2)[:300]), ("y.txt", b"\xff\xfe"), *pair("z", 3)]
    write_tar(folder / "odd.tar", odd)
    make_parquet(folder / "p.parquet", 25, first=2_000)
    (folder / "animals.txt").write_text("red star\nblue circle\n")
    (folder / "colors.txt").write_text("red\nblue\n")
    return folder


@pytest.fixture(scope="module")
def reference(shards, tmp_path_factory):
    """The labelled dataset that the plain functions make."""
    out = tmp_path_factory.mktemp("reference") / "out"
    inputs = [shards / "*.tar", shards / "p.parquet"]
    embed_shards(inputs, out, ClipSpec("demo", precision="fp32"), shards / "animals.txt")
    label_embeddings(out, shards / "colors.txt")
    return out


def embed_argv(shards, output, runner):
    argv = ["--input", shards / "*.tar", shards / "p.parquet", "--output", output, "--model", "demo"]
    return [*map(str, [*argv, "--precision", "fp32", "--taxonomy", shards / "animals.txt"]), *runner]


def made(folder):
    """What a command made: path → bytes, with another word for the folder, whose name its records hold."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"OUT") for path in paths}


def test_a_dataset_has_the_bytes_of_the_plain_functions_and_is_not_made_twice(runner, shards, reference, tmp_path):
    out = tmp_path / "out"
    done = command("pipelines.embed", *embed_argv(shards, out, runner), timeout=300)
    assert done.returncode == 0 and f"{UNITS} units committed" in done.stdout, done.stderr
    done = command("pipelines.label", "--input", out, "--taxonomy", shards / "colors.txt", *runner, timeout=300)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(reference) and (out / "_SUCCESS").exists() and not (out / "_temporary").exists()
    next(out.glob("embeddings/3-*.parquet")).unlink()
    again = command("pipelines.embed", *embed_argv(shards, out, runner), timeout=300)
    assert again.returncode == 0 and f"1 unit committed, {UNITS - 1} skipped" in again.stdout, again.stderr


@pytest.mark.parametrize("what", ["worker", "host"])
@pytest.mark.skipif(PRISM != "" or not KILL, reason="needs CLIP_TRANSFORMS_TEST_KILL, and a cluster that it kills")
def test_a_kill_in_mid_run_changes_no_byte(runner, what, shards, reference, tmp_path):
    out = tmp_path / "out"
    with Process("-m", "pipelines.embed", *embed_argv(shards, out, runner), stderr=subprocess.PIPE, text=True) as run:
        try:
            wait_for(lambda: len([*out.glob("embeddings/*.parquet")]) >= 2, 200)
            subprocess.run([*shlex.split(KILL), what], check=True, timeout=100)
            there = len([*out.glob("embeddings/*.parquet")])
            _, said = run.communicate(timeout=400)
        finally:
            run.kill()
    assert there < UNITS, "it was to be killed in mid-run"
    if run.returncode:  # a runner may give up after some failures; then the same command goes on
        done = command("pipelines.embed", *embed_argv(shards, out, runner), timeout=300)
        assert done.returncode == 0, (said, done.stderr)
    label_embeddings(out, shards / "colors.txt")
    assert files_of(out) == files_of(reference) and (out / "_SUCCESS").exists() and not (out / "_temporary").exists()


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_writes_the_bytes_of_the_plain_function(runner, name, reference, tmp_path):
    flags, function, arguments = VERBS[name]
    argv = ["--input", reference, "--output", tmp_path / "there", *flags, *runner]
    done = command(f"pipelines.{name}", *argv, timeout=300)
    assert done.returncode == 0, done.stderr
    function(reference, tmp_path / "here", **arguments)
    here, there = made(tmp_path / "here"), made(tmp_path / "there")
    assert here.keys() == there.keys() and [path for path in here if here[path] != there[path]] == []


def test_a_report_has_the_bytes_of_the_plain_function(runner, reference, tmp_path):
    done = command("pipelines.report", "--input", reference, "--output", tmp_path / "there.html", *runner, timeout=300)
    assert done.returncode == 0, done.stderr
    report_embeddings(reference, tmp_path / "here.html")
    assert (tmp_path / "there.html").read_bytes() == (tmp_path / "here.html").read_bytes()


def test_a_damaged_shard_is_named_and_the_others_are_embedded(runner, shards, tmp_path):
    (tmp_path / "cut.tar").write_bytes((shards / "0.tar").read_bytes()[:100_000])
    argv = ["--input", tmp_path / "cut.tar", shards / "1.tar", "--output", tmp_path / "out", "--model", "demo"]
    done = command("pipelines.embed", *argv, *runner, timeout=300)
    assert done.returncode == 3 and "could not be read to the end" in done.stdout, (done.stdout, done.stderr)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["input"]["shards.rejected"] == 1 and run["input"]["image.embedded"] > 100
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def lines_of(said):
    return [line for line in said.splitlines() if not line.startswith(("note: ", "warning: "))]


def test_an_error_in_a_worker_reaches_the_command_as_one_sentence(runner, shards, tmp_path):
    """The checkpoint is replaced once the plan is made, so that workers find another one."""
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    model.write_bytes((Path(clip_transforms.__file__).parent / "demo" / "demo.safetensors").read_bytes())
    argv = ["--input", shards / "0.tar", "--output", out, "--model", model, *runner]
    with Process("-m", "pipelines.embed", *argv, stderr=subprocess.PIPE, text=True) as run:
        try:
            wait_for(lambda: [*out.glob("_temporary/*/plan.parquet")], 100)
            model.write_bytes(model.read_bytes()[:-4] + bytes(4))
            _, said = run.communicate(timeout=300)
        finally:
            run.kill()
    assert run.returncode == 1, said
    assert len(lines_of(said)) == 1 and "but the run was planned with" in said, said


def test_an_output_that_cannot_be_written_ends_the_run_in_one_sentence(runner, shards, tmp_path):
    """Refused at once if it is known at the start. What happens later ends the job, and the reason arrives here."""
    argv = ["--input", shards / "*.tar", "--model", "demo", "--output"]
    done = command("pipelines.embed", *argv, "/proc/out", *runner, timeout=100)
    assert done.returncode == 2 and "/proc/out" in done.stderr and len(lines_of(done.stderr)) == 1
    out = tmp_path / "out"
    with Process("-m", "pipelines.embed", *argv, out, *runner, stderr=subprocess.PIPE, text=True) as run:
        try:
            wait_for(lambda: [*out.glob("embeddings/*.parquet")], 100)
            (out / "embeddings").rename(out / "taken")
            (out / "embeddings").write_text("a file where the folder was\n")
            _, said = run.communicate(timeout=300)
        finally:
            run.kill()
    assert run.returncode == 1, said
    assert len(lines_of(said)) == 1 and f"{out}/embeddings" in said, said
