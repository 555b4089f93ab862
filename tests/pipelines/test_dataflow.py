"""The job that Dataflow would get, and what its image installs; nothing here asks Google."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.environments import DockerEnvironment
from conftest import ROOT, make_tar

from clip_transforms import ClipSpec, EmbedShards
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from pipelines.flags import embed_parser
from pipelines.options import parse

DOCS = Path(ROOT, "docs")
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"
ACCELERATOR, MIN_RAM = "beam:resources:accelerator:v1", "beam:resources:min_ram_bytes:v1"
MANY = 100_000
EMBED = "EmbedShards/Embed"


def options_of(path=DOCS / "dataflow.options"):
    """The options in the file, with names that Beam admits."""
    names = {"PROJECT": "project-1", "REGION": "europe-west4", "BUCKET": "bucket"}
    return re.sub("PROJECT|REGION|BUCKET", lambda found: names[found[0]], path.read_text()).split()


@pytest.fixture
def transform(tmp_path, tiny_checkpoint):
    """EmbedShards of a plan of 100,000 units whose shards were all named."""
    make_tar(tmp_path / "0.tar", 1)
    plan = plan_run(Settings((f"{tmp_path}/*.tar",), f"{tmp_path}/out", ClipSpec(tiny_checkpoint)))
    named = tuple(f"gs://bucket/web/shards/{i:06d}.tar" for i in range(MANY))
    plan.settings = dataclasses.replace(plan.settings, inputs=named)
    plan.units *= MANY
    transform = EmbedShards.of(plan, ["python", "-m", "pipelines.embed", "--input", *named])
    yield transform
    if transform.run_folder is not None:
        transform.run_folder.close()


def hints_of(graph):
    """Step → its resource hints."""
    environments = graph.components.environments
    return {
        step.unique_name: dict(environments[step.environment_id].resource_hints) if step.environment_id else {}
        for step in graph.components.transforms.values()
    }


def check_graph(graph):
    """It is small, and what it creates are single elements: the plan's URI, and None."""
    assert graph.ByteSize() < 200_000
    created = [step for step in graph.components.transforms.values() if step.spec.urn == "beam:transform:impulse:v1"]
    assert len(created) == 3
    # Of the steps only that which hands out the tasks grows with the plan: by some bytes for 64 units.
    large = [step.unique_name for step in graph.components.transforms.values() if len(step.spec.payload) > 20_000]
    assert large in ([], ["EmbedShards/Tasks"])


def test_the_graph_of_a_hundred_thousand_named_shards_is_small_and_only_one_step_asks_for_a_gpu(transform):
    pipeline = beam.Pipeline(options=PipelineOptions(["--max_num_workers=100"]))
    _ = pipeline | transform.with_resource_hints(accelerator=GPU).with_resource_hints(min_ram="24GB")
    graph = pipeline.to_runner_api(default_environment=DockerEnvironment.from_container_image("image:1"))
    check_graph(graph)
    hints = hints_of(graph)
    assert hints.pop(EMBED) == {ACCELERATOR: GPU.encode(), MIN_RAM: b"24000000000"}
    assert len(hints) > 20 and not any(hints.values())


def test_without_hints_no_step_has_any_and_a_wrong_hint_is_refused_at_once(transform):
    with pytest.raises(ValueError, match="Unknown resource hint: gpu"):
        transform.with_resource_hints(gpu=1)
    pipeline = beam.Pipeline()
    _ = pipeline | transform
    assert not any(hints_of(pipeline.to_runner_api()).values())


def test_a_run_with_hints_on_this_machine_is_the_same(tmp_path, tiny_checkpoint):
    make_tar(tmp_path / "0.tar", 3)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        embed = EmbedShards(f"{tmp_path}/*.tar", tmp_path / "out", ClipSpec(tiny_checkpoint, precision="fp32"))
        _ = pipeline | embed.with_resource_hints(min_ram="1GB")
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_the_options_are_flags_that_the_command_takes():
    argv = ["--input", "gs://bucket/in/*.tar", "--output", "gs://bucket/out", "--model", "ViT-B/32", *options_of()]
    _, options = parse(embed_parser(), argv)
    known = options.get_all_options()
    assert known["runner"] == "DataflowRunner" and known["max_num_workers"] == 8
    assert known["experiments"] == ["no_use_multiple_sdk_containers"] and known["number_of_worker_harness_threads"] == 2
    assert known["sdk_location"] == "container" and known["resource_hints"] == [f"accelerator={GPU}"]
    for line in (DOCS / "dataflow.options").read_text().splitlines():
        assert re.fullmatch(r"--\w+=\S+", line), "a shell splits the file at white space"


def test_dataflows_own_runner_makes_the_job_from_the_options(transform):
    pytest.importorskip("google.cloud.dataflow", reason="needs pip install 'apache-beam[gcp]'")
    argv = [word for word in options_of() if "resource_hint" not in word]
    pipeline = beam.Pipeline(options=PipelineOptions([*argv, "--dry_run=True"]))
    _ = pipeline | transform.with_resource_hints(accelerator=GPU)
    graph = pipeline.run().job.proto_pipeline
    check_graph(graph)
    hints = hints_of(graph)
    assert hints.pop(EMBED) == {ACCELERATOR: GPU.encode()} and not any(hints.values())
    images = [environment.payload for environment in graph.components.environments.values()]
    assert len(images) == 2 and all(b"/clip-transforms:0.1.0" in image for image in images)


def dockerfile():
    lines = (DOCS / "dataflow.Dockerfile").read_text().splitlines()
    return [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]


def test_the_image_has_the_beam_of_the_pins_and_runs_the_script_alone():
    found = dockerfile()
    (base,) = [rest for word, rest in found if word == "FROM"]
    version = re.search(r"apache-beam==(\S+)", Path(ROOT, "constraints.txt").read_text())[1]
    assert re.fullmatch(rf"apache/beam_python3\.\d+_sdk:{re.escape(version)}", base)
    assert [rest for word, rest in found if word == "RUN"] == ["MODEL=$MODEL sh docs/dataflow-install.sh"]
    assert not [word for word, _ in found if word in ("ENTRYPOINT", "CMD")], "the base image starts Beam's worker"


@pytest.mark.slow  # installs torch, Beam and Google's packages into a new environment, from the package index
@pytest.mark.timeout(3000)
def test_what_the_image_installs_runs_the_demo_in_a_clean_environment(tmp_path):
    for word, rest in dockerfile():
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = tmp_path / target if target != "./" else tmp_path / source
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if Path(ROOT, source).is_dir() else shutil.copy
                copy(Path(ROOT, source), place)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=200)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:{env['PATH']}", "MODEL": ""}
    done = subprocess.run(["sh", "docs/dataflow-install.sh"], cwd=tmp_path, env=env, timeout=2400, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    run = [tmp_path / "venv" / "bin" / "python", "-m", "pipelines.embed"]
    make_tar(tmp_path / "0.tar", 3)
    argv = ["--input", tmp_path / "0.tar", "--output", tmp_path / "out", "--model", "demo"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([*run, *argv], cwd=elsewhere, env=env, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "from google.cloud import dataflow; import apache_beam.runners.dataflow.internal.apiclient, gcsfs"
    subprocess.run([run[0], "-c", code], cwd=elsewhere, env=env, check=True, timeout=300)
