"""A GPU that has no room for all its processes: fewer go on, and no sample is lost.

The GPU is a set of rules, and the processes are threads of this one; what they tell each other, the model and the files
are real. A slow test starts real processes.
"""

import json
import logging
import os
import queue
import threading
import traceback
import weakref
from collections import Counter

import pytest
import torch
from conftest import command, files_of, make_tar, rows_of

from clip_transforms import ClipSpec, embed_shards
from clip_transforms.run import child, embed_units, places, processes
from clip_transforms.run.parent import Parent, Progress

UNITS = 20
LATE = "when the other has left"
SAID = "CUDA out of memory. Tried to allocate 20.00 MiB"


class _Launcher(Parent):
    def __init__(self, hear, tell):
        self.hear, self.tell = hear, tell


class Thread(processes._Process):
    """A process that is a thread of this one, and remembers which tasks it got."""

    tasks = []
    both, left = threading.Event(), threading.Event()  # two have got a task; one was told that there are no more

    def __init__(self, name, gpu, heard):
        self.name, self.pid, self.gpu = name, 7, gpu
        self.done, self.dismissed, self.ended = 0, False, False
        self._task = self._shards = None
        self._told, self._heard = queue.SimpleQueue(), heard
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self):
        launcher = _Launcher(self._told.get, self._say)
        try:
            child._work(launcher)
        except Exception as error:
            self._say("error", (error, traceback.format_exc()))
        self._say("ended", 0)

    def _say(self, kind, what=None):
        self._heard.put((self, kind, what))

    def tell(self, what):
        if type(what) is tuple and type(what[0]) is int:
            self.tasks.append((self.name[:9], *what))
            if len({name for name, *_ in self.tasks}) == 2:
                self.both.set()
        if what is None:
            self.left.set()
        self._told.put(what)

    def end(self):
        self._told.put(None)
        self._thread.join(60)


class Gpu:
    """Says in which processes there is no room, when they load the model for the first time: `process_2="load"`."""

    def __init__(self, always=False, together=0, **full):
        self.full = {name.replace("_", " "): how for name, how in full.items()}
        self.always, self.loaded, self.failed = always, Counter(), threading.Event()
        self.models = {}
        self.barrier = threading.Barrier(together or 1)

    def load(self, job, load=embed_units.load_embedder):
        name = threading.current_thread().name[:9]
        self.loaded[name] += 1
        first = self.loaded[name] == 1
        if first:
            self.barrier.wait(60)
        how = self.full.get(name) if first or self.always else None
        if how == "load":
            self.fail(SAID)
        assert name not in self.models or self.models[name]() is None, "a GPU that is full holds no second model"
        embedder = load(job)
        self.models[name] = weakref.ref(embedder.model)
        calls = Counter()

        def watch(module, args):
            calls["batches"] += 1
            if how == "first batch" or (how == "second batch" and calls["batches"] > 1):
                self.fail(SAID)
            if how == LATE and calls["batches"] == 1:
                Thread.left.wait(60)
                self.fail(SAID)
            if how is None and LATE in self.full.values():
                Thread.both.wait(60)
            if how is None and "batch" in str(self.full):  # the first batch waits, so that the others get tasks
                self.failed.wait(60)

        if how in (None, "first batch", "second batch", LATE):
            embedder.model.visual.register_forward_pre_hook(watch)
        else:
            embedder.claim_memory = lambda: self.fail(how)
        return embedder

    def fail(self, said):
        self.failed.set()
        raise (torch.cuda.OutOfMemoryError if said == SAID else RuntimeError)(said)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    for i in range(UNITS):
        make_tar(path / f"{i:02d}.tar", 1, first=i)
    return path


@pytest.fixture(scope="module")
def alone(inputs, tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    embed_shards(inputs, out, ClipSpec(tiny_checkpoint, device="cpu", precision="fp32"), processes=1)
    return out


@pytest.fixture
def run(inputs, alone, tiny_checkpoint, tmp_path, monkeypatch):
    """Embed in processes that are dealt out to the GPUs; the content of run.json, and the warnings."""
    root, said = logging.getLogger(), []
    monkeypatch.setattr(root, "handlers", list(root.handlers))  # a process replaces them by its own
    monkeypatch.setattr(processes._LOGGER, "warning", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(processes, "_Process", Thread)
    monkeypatch.setattr(Progress, "_keep_telling", lambda self: None)
    monkeypatch.setattr(Thread, "tasks", [])
    monkeypatch.setattr(Thread, "both", threading.Event())
    monkeypatch.setattr(Thread, "left", threading.Event())

    def run(gpus, count, gpu):
        monkeypatch.setattr(places, "gpus_for", lambda device: gpus)
        monkeypatch.setattr(embed_units, "load_embedder", gpu.load)
        spec = ClipSpec(tiny_checkpoint, device="cpu", precision="fp32")
        return embed_shards(inputs, tmp_path / "out", spec, processes=count), said

    return run


HOW = [
    *("load", SAID, "first batch", "second batch"),
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
]


@pytest.mark.parametrize("how", HOW)
def test_a_process_that_finds_no_room_ends_and_the_other_does_its_task(how, run, alone, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "clip_transforms.embed_shards")
    monkeypatch.setattr(places, "cores", lambda: 2)
    made, said = run(["0"], 2, gpu := Gpu(process_2=how))
    assert said == ["GPU 0 has no room for process 2 of 2, which ends; 1 other process there goes on"]
    assert gpu.loaded == {"process 1": 1, "process 2": 1} and "2 processes on 1 GPU, 1 core each" in caplog.messages
    assert made["complete"] and made["units"]["committed"] == UNITS and len(rows_of(tmp_path / "out")) == UNITS
    assert files_of(tmp_path / "out") == files_of(alone)
    given = [(start, stop) for name, start, stop in Thread.tasks if name == "process 2"]
    done = 1 if how == "second batch" else 0
    assert len(given) == ("batch" in how)
    for start, stop in given:
        assert ("process 1", start + done, stop) in Thread.tasks and stop > start + 1


@pytest.mark.parametrize("how", HOW[:3])
def test_of_processes_that_all_find_no_room_at_once_the_last_goes_on_alone(how, run, alone, tmp_path):
    gpu = Gpu(process_1=how, process_2=how, process_3=how, together=3)
    made, said = run(["0"], 3, gpu)
    ends = [line.partition("which ends; ")[2] for line in said]
    assert ends == ["2 other processes there go on", "1 other process there goes on"]
    assert sorted(gpu.loaded.values()) == [1, 1, 2]
    assert made["complete"] and made["units"]["committed"] == UNITS
    assert files_of(tmp_path / "out") == files_of(alone)


def test_a_process_that_finds_no_room_when_the_other_has_left_does_its_task_alone(run, alone, tmp_path):
    made, said = run(["0"], 2, gpu := Gpu(process_2=LATE))
    assert said == [] and gpu.loaded == {"process 1": 1, "process 2": 2}
    assert made["complete"] and made["units"]["committed"] == UNITS
    assert files_of(tmp_path / "out") == files_of(alone)


def test_a_process_is_the_last_of_its_gpu_whatever_is_left_on_others(run, alone, tmp_path):
    gpu = Gpu(process_1="load", process_3="load", together=3)
    made, said = run(["3", "GPU-b"], 3, gpu)
    assert len(said) == 1 and said[0].startswith("GPU 3 has no room for process ")
    assert gpu.loaded["process 1"] + gpu.loaded["process 3"] == 3 and gpu.loaded["process 2"] == 1
    assert made["complete"]
    assert files_of(tmp_path / "out") == files_of(alone)


@pytest.mark.parametrize("gpus, count", [(["0"], 2), (["0", "1"], 2)], ids=["the last of a GPU", "alone on a GPU"])
@pytest.mark.parametrize("how", ["load", "first batch"])
def test_where_no_process_is_left_the_run_ends_with_the_error_of_the_gpu(how, gpus, count, run, tmp_path):
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory. Tried to allocate"):
        run(gpus, count, Gpu(always=True, process_1=how, process_2=how))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_another_error_ends_the_run_whoever_shares_the_gpu(run):
    with pytest.raises(RuntimeError, match="^CUDA error: an illegal memory access was encountered"):
        run(["0"], 2, Gpu(process_2="CUDA error: an illegal memory access was encountered"))


# The GPU of the processes below has room for one of them.
ROOM = """
import importlib.util, os, sys

def gpus(module):
    module.gpus_for = lambda device: ["0"]

def room(module):
    load = module.load_embedder
    def load_embedder(job):
        import torch
        try:
            os.close(os.open(os.environ["TEST_ROOM"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory") from None
        return load(job)
    module.load_embedder = load_embedder

class Watch:
    def find_spec(self, name, path, target=None):
        change = {"clip_transforms.run.places": gpus, "clip_transforms.run.embed_units": room}.get(name)
        if change is None:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.slow  # processes of ours, which import everything anew: ten seconds
@pytest.mark.timeout(200)
def test_real_processes_become_fewer_and_the_command_says_so(inputs, alone, tiny_checkpoint, tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(ROOM)
    path = os.pathsep.join(filter(None, [str(tmp_path / "hook"), os.environ.get("PYTHONPATH")]))
    argv = ["--input", inputs, "--output", tmp_path / "out", "--model", tiny_checkpoint, "--precision", "fp32"]
    environment = os.environ | {"PYTHONPATH": path, "TEST_ROOM": str(tmp_path / "room")}
    done = command("pipelines.embed", *argv, "--device", "cpu", "--processes", "2", env=environment)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("2 processes on 1 GPU, ") for line in done.stdout.splitlines())
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and warnings[0].startswith("warning: GPU 0 has no room for process ")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["speed"]["processes"] == 1
    rows = [[(row["shard"], row["row"], row["key"]) for row in rows_of(out)] for out in (tmp_path / "out", alone)]
    assert rows[0] == rows[1] and len(rows[0]) == UNITS
