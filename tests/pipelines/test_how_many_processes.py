"""The number of processes, and their GPUs, cores and tasks. No process is started here."""

import importlib.metadata
import os
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import make_tar

from clip_transforms import ClipSpec
from clip_transforms.run import places
from clip_transforms.run.job import Job
from clip_transforms.run.settings import Settings
from clip_transforms.workers import machine
from clip_transforms.workers.runner import check_processes
from pipelines import embed, options

TWO = ["--processes", "2"]


GB = 1_000_000_000
B32 = ClipSpec("ViT-B/32").resolve()  # 2.3 GB a process
L14 = ClipSpec("ViT-L/14").resolve()  # 6.1 GB


@pytest.fixture
def found(monkeypatch):
    """The processes for a machine whose GPUs, by name, have so much free memory, and what is said of them."""

    def find(gpus, cores, pending, asked=0, checkpoint=B32, **settings):
        monkeypatch.setattr(places, "gpus_for", lambda device: list(gpus))
        monkeypatch.setattr(places, "cores", lambda: cores)
        monkeypatch.setattr(places, "free_bytes", lambda names: [gpus[name] for name in names])
        made = places.find_places(Settings(("in",), "out", B32_SPEC, processes=asked, **settings), checkpoint, pending)
        return list(made.gpus), made.line

    return find


B32_SPEC = ClipSpec("ViT-B/32")


@pytest.mark.parametrize(
    "asked, cores, pending, expected, said",
    [
        (0, 2, 100, 1, ""),
        (0, 15, 100, 1, ""),
        (0, 64, 100, 8, "8 processes, 8 cores each"),
        (0, 64, 3, 3, "3 processes, 21 cores each"),
        (5, 2, 100, 5, "5 processes, 1 core each"),
        (5, 2, 0, 1, ""),
    ],
)
def test_the_number_of_processes_without_a_gpu(asked, cores, pending, expected, said, found):
    assert found({}, cores, pending, asked) == ([None] * expected, said)


@pytest.mark.parametrize(
    "gpus, cores, pending, expected, said",
    [
        ({"0": 80 * GB}, 16, 100, ["0"], "1 process on 1 GPU, 16 cores and 16 feeders"),
        ({"0": 80 * GB}, 63, 3, ["0"], "1 process on 1 GPU, 63 cores and 3 feeders"),
        ({"0": 80 * GB}, 16, 1, ["0"], "1 process on 1 GPU, 16 cores"),
        ({"0": 80 * GB}, 128, 100, ["0"] * 4, "4 processes on 1 GPU, 32 cores and 32 feeders each"),
        ({"0": 80 * GB}, 300, 100, ["0"] * 8, "8 processes on 1 GPU, 37 cores and 37 feeders each"),
        ({"3": 80 * GB, "5": 80 * GB}, 16, 100, ["3", "5"], "2 processes on 2 GPUs, 8 cores and 8 feeders each"),
        ({"3": 80 * GB, "5": 80 * GB}, 128, 3, ["3", "5", "3"], "3 processes on 2 GPUs, 42 cores and 3 feeders each"),
        ({"0": 0, "1": 0, "2": 0}, 2, 100, ["0", "1", "2"], "3 processes on 3 GPUs, 1 core each"),
        ({"0": 80 * GB}, 16, 0, ["0"], ""),
    ],
)
def test_each_gpu_has_as_many_processes_as_the_cores_feed(gpus, cores, pending, expected, said, found):
    assert found(gpus, cores, pending) == (expected, said)


FULL = "as many as the free memory of the GPUs has room for"


@pytest.mark.parametrize(
    "gpus, checkpoint, expected, said",
    [
        ({"0": 8 * GB}, B32, ["0"] * 3, f"3 processes on 1 GPU, 42 cores and 42 feeders each, {FULL}"),
        ({"0": 24 * GB}, L14, ["0"] * 3, f"3 processes on 1 GPU, 42 cores and 42 feeders each, {FULL}"),
        ({"0": 28 * GB}, L14, ["0"] * 4, "4 processes on 1 GPU, 32 cores and 32 feeders each"),
        ({"0": 1 * GB}, B32, ["0"], f"1 process on 1 GPU, 128 cores and 100 feeders, {FULL}"),
        (
            {"a": 1 * GB, "b": 8 * GB},
            B32,
            ["a", "b", "b"],
            f"3 processes on 2 GPUs, 42 cores and 42 feeders each, {FULL}",
        ),
        ({"0": 0}, B32, ["0"], f"1 process on 1 GPU, 128 cores and 100 feeders, {FULL}"),
        (
            {"0": None},
            B32,
            ["0"],
            "1 process on 1 GPU, 128 cores and 100 feeders, since the free memory of a GPU is not known",
        ),
    ],
    ids=[
        "two fewer",
        "larger model",
        "just enough",
        "too little",
        "one is fuller",
        "for one process only",
        "no answer",
    ],
)
def test_a_gpu_with_less_memory_has_fewer_processes_and_at_least_one(gpus, checkpoint, expected, said, found):
    assert found(gpus, 128, 100, checkpoint=checkpoint) == (expected, said)


def test_the_number_that_was_asked_for_is_exact_and_no_gpu_is_asked(found, monkeypatch):
    gpus = {"3": 1, "5": 1}
    assert found(gpus, 2, 100, asked=5) == (["3", "5", "3", "5", "3"], "5 processes on 2 GPUs, 1 core each")
    assert found(gpus, 2, 2, asked=5)[0] == ["3", "5"]
    assert found(gpus, 64, 100, asked=1) == (["3"], "1 process on 1 GPU, 64 cores and 64 feeders")


@pytest.mark.parametrize(
    "feeders, gpus, cores, pending, said",
    [
        (0, {"0": GB}, 16, 100, "1 process on 1 GPU, 16 cores"),
        (40, {"0": GB}, 16, 100, "1 process on 1 GPU, 16 cores and 40 feeders"),
        (2, {}, 2, 100, "1 process, 2 cores and 2 feeders"),
        (1, {}, 2, 100, "1 process, 2 cores and 1 feeder"),
        (2, {}, 2, 1, ""),
        (0, {}, 2, 100, ""),
        (3, {}, 16, 100, "2 processes, 8 cores and 3 feeders each"),
    ],
)
def test_there_are_as_many_feeders_as_were_asked_for_where_there_are_units(feeders, gpus, cores, pending, said, found):
    assert found(gpus, cores, pending, feeders=feeders)[1] == said


def test_no_gpu_is_asked_for_its_memory_where_each_has_one_process(found, monkeypatch):
    asked = []
    for gpus, cores, pending in (({"0": GB}, 64, 1), ({"0": GB}, 63, 100), ({"0": GB, "1": GB}, 128, 2)):
        monkeypatch.setattr(places, "gpus_for", lambda device, gpus=gpus: list(gpus))
        monkeypatch.setattr(places, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(places, "free_bytes", asked.append)
        made = places.find_places(Settings(("in",), "out", B32_SPEC), B32, pending)
        assert list(made.gpus) == list(gpus) and asked == []


@pytest.mark.parametrize(
    "device, build, nodes, visible, expected",
    [
        ("auto", "2.13.0", ["nvidia0", "nvidia1", "nvidiactl"], None, ["0", "1"]),
        ("cuda", "2.13.0+cu130", ["nvidia5"], None, ["0"]),
        ("auto", "2.13.0", ["dxg"], None, ["0"]),
        ("auto", "2.13.0", ["nvidia0", "nvidia1"], "7, 3,GPU-ab", ["7", "3", "GPU-ab"]),
        ("auto", "2.13.0", ["nvidia0", "nvidia1"], "1,-1,0", ["1"]),
        ("auto", "2.13.0", ["nvidia0"], "", []),
        ("cpu", "2.13.0", ["nvidia0"], None, []),
        ("auto", "2.13.0+cpu", ["nvidia0"], None, []),
        ("auto", "2.13.0", ["nvidiactl"], None, []),
    ],
)
def test_the_gpus_that_there_are(device, build, nodes, visible, expected, monkeypatch, tmp_path):
    for node in nodes:
        (tmp_path / node).write_text("")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).relative_to("/dev"))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus_for(device) == expected


def test_each_process_counts_on_its_share_of_the_cores_that_a_scheduler_left(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 20)))
    monkeypatch.setattr(machine, "_QUOTA", Path("no-such-file"))
    monkeypatch.setattr(os, "getppid", lambda: 77)
    assert machine.cores_of(77, 1) == 16 and machine.cores_of(77, 3) == 5
    assert machine.cores_of(77, 40) == 1 and machine.cores_of(78, 3) == 16


@pytest.mark.parametrize(
    "quota, expected",
    [
        ("800000 100000", 8),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 16),
        ("max 100000", 16),
        (None, 16),
    ],
)
def test_a_container_that_allows_fewer_cores_than_the_machine_has_is_heeded(quota, expected, tmp_path, monkeypatch):
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    assert machine.cores() == expected


@pytest.mark.parametrize(
    "asked, flags, said",
    [
        (
            2,
            ["--direct_running_mode=multi_processing"],
            "--direct_running_mode multi_processing the runner starts",
        ),
        (1, ["--direct_running_mode=multi_threading"], "with --direct_running_mode multi_threading the runner starts"),
        (2, ["--runner=FlinkRunner"], "with --runner FlinkRunner the runner starts the workers"),
        (100_000, [], "--processes is 100000, but it must be 1 to"),
    ],
)
def test_processes_beside_workers_of_the_runner_are_refused(asked, flags, said):
    with pytest.raises(ValueError, match=said):
        check_processes(asked, None, PipelineOptions(flags))
    check_processes(0, None, PipelineOptions(flags))


@pytest.mark.parametrize(
    "processes, feeders, said",
    [
        (0, 33, "--feeders is 33, but it must be 0 to 32 "),
        (4, 9, "--feeders is 9, but beside --processes 4 it must be 0 to 8 "),
    ],
)
def test_more_feeders_than_any_machine_could_use_are_refused(processes, feeders, said, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    with pytest.raises(ValueError, match=said):
        check_processes(processes, feeders, PipelineOptions())
    check_processes(processes, feeders - 1, PipelineOptions())
    check_processes(0, 999, PipelineOptions(["--runner=FlinkRunner"]))  # the workers' machines may be larger
    with pytest.raises(ValueError, match="--feeders is -1, but it must be 0 or more"):
        Settings(("in",), "out", B32_SPEC, feeders=-1)


@pytest.mark.parametrize(
    "processes, gpus, machine_cores, said",
    [
        (1, [], 1, None),
        (2, [], 2, None),
        (3, [], 2, "3 processes are more than the 2 cores of this machine, {turns}; give --processes 2"),
        (2, [], 1, "2 processes are more than the 1 core of this machine, {turns}; give --processes 1"),
        (4, ["0"], 2, None),
        (8, ["0", "1"], 2, None),
        (16, ["0", "1"], 64, None),
        (17, ["0", "1"], 64, "17 processes are more than 8 for each GPU, {turns}; give --processes 16"),
    ],
)
def test_more_processes_than_the_machine_has_room_for_are_warned_of(processes, gpus, machine_cores, said):
    found = options.too_many_processes(processes, gpus, machine_cores)
    turns = "so they take turns and only need more memory"
    assert found == (said and f"warning: {said.format(turns=turns)} or fewer, or omit the flag")


def test_the_command_warns_of_more_processes_than_cores_and_goes_on(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    for i in range(3):
        make_tar(tmp_path / f"{i}.tar", 1, first=i)
    for module in (options, places):
        monkeypatch.setattr(module, "cores", lambda: 2)
        monkeypatch.setattr(module, "gpus_for", lambda device: [])
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "out"), "--model", tiny_checkpoint]
    for number, warned in (("2", False), ("3", True), ("4", True), ("0", False)):
        assert embed.main([*argv, "--processes", number, "--dry_run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("warning: 3 processes are more than the 2 cores") for line in lines) is warned
        said = [line for line in lines if "core each" in line]
        assert said == ([f"{3 if warned else 2} processes, 1 core each"] if number != "0" else [])


def test_workers_of_the_runner_are_not_announced_as_processes_of_ours(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    for i in range(2):
        make_tar(tmp_path / f"{i}.tar", 1, first=i)
    monkeypatch.setattr(places, "gpus_for", lambda device: ["0"])
    monkeypatch.setattr(places, "free_bytes", lambda gpus: [80 * GB])
    argv = ["--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "out"), "--model", tiny_checkpoint]
    for flags, announced in (([], True), (["--direct_running_mode", "multi_processing"], False)):
        assert embed.main([*argv, "--dry_run", *flags]) == 0
        assert (" on 1 GPU, " in capsys.readouterr().out) is announced


def test_what_is_pending_lies_first_and_is_cut_into_tasks_of_its_own():
    job = object.__new__(Job)
    for name, value in {"units": 1000, "pending": 10, "workers": 2, "feeders": 0}.items():
        object.__setattr__(job, name, value)
    tasks = job.tasks()
    assert tasks[:8] == [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6), (6, 7), (7, 8), (8, 10)]
    assert [start for start, _ in tasks] == [0, *(stop for _, stop in tasks[:-1])] and tasks[-1][1] == 1000
    object.__setattr__(job, "workers", 0)
    assert job.tasks()[0] == (0, 10), "a process alone waits at the end of a task for nobody's sake"
    assert max(stop - start for start, stop in job.tasks()) <= 64
    object.__setattr__(job, "feeders", 8), object.__setattr__(job, "pending", 1000)
    assert job.tasks() == [(0, 500), (500, 1000)], "a task has 64 units for each feeder at most"
    object.__setattr__(job, "workers", 2), object.__setattr__(job, "pending", 100)
    assert job.tasks()[:3] == [(0, 33), (33, 66), (66, 100)], "and four at least"
    object.__setattr__(job, "pending", 20)
    assert job.tasks()[:2] == [(0, 10), (10, 20)], "but every worker has one"
    object.__setattr__(job, "units", 0), object.__setattr__(job, "pending", 0)
    assert job.tasks() == []
