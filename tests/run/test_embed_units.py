"""The work of a task, without Beam: what it asks of the machine, and how far its stages run ahead."""

import os
import platform
import threading
import time
from collections import Counter

import pytest
import torch
from conftest import make_tar, picture, write_tar

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.engine.forward import Embedder
from clip_transforms.parts.writer import UnitWriter
from clip_transforms.run import embed_units
from clip_transforms.run.begin import begin_run
from clip_transforms.run.job import read_units
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.workers.machine import give_back_memory


@pytest.fixture
def begun(tmp_path, tiny_checkpoint):
    """A function: inputs → the job of a run over them, and its units."""
    folders = []

    def begin(*inputs, **settings):
        spec = ClipSpec(tiny_checkpoint, precision="fp32")
        plan = plan_run(Settings(tuple(map(str, inputs)), str(tmp_path / "out"), spec, **settings))
        job, folder = begin_run(plan, 1, ())
        folders.append(folder)
        return job, [planned.unit for planned in read_units(job, 0, job.units)]

    yield begin
    for folder in folders:
        folder.close()


class Model:
    """A model that notes when pictures go through it; a test may give it another device."""

    def __init__(self, model):
        self._model, self.device, self.batches = model, model.device, 0

    def embed_images(self, pixels):
        self.batches += 1
        return self._model.embed_images(pixels)

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_the_model_gets_the_threads_of_its_share_of_the_cores(begun, tmp_path, monkeypatch):
    job, _ = begun(make_tar(tmp_path / "a.tar", 1), batch_size=7)
    before = torch.get_num_threads()
    try:
        for share in (3, 1):
            monkeypatch.setattr(embed_units, "cores_of", lambda *_, share=share: share)
            assert embed_units.load_embedder(job).batch_size == 7
            assert torch.get_num_threads() == share
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device, pinned", [("cpu", False), ("cuda", True)])
def test_pixels_are_pinned_where_a_gpu_copies_them(device, pinned, begun, tmp_path, tiny_checkpoint, monkeypatch):
    asked, original = [], torch.empty

    def empty(*args, **more):
        if more.get("dtype") == torch.uint8 and "pin_memory" in more:
            asked.append(more.pop("pin_memory"))  # here is no GPU that could give such memory
        return original(*args, **more)

    monkeypatch.setattr(torch, "empty", empty)
    job, units = begun(make_tar(tmp_path / "a.tar", 3))
    embedder = Embedder(Model(load(tiny_checkpoint, "cpu")))
    if device == "cuda":
        embedder.caller.gpu = type("Full", (), {"start": lambda *_: None})()  # each batch is then embedded on the CPU
    (result,) = embed_units.embed_units(units, job, embedder, {}, 1)
    assert result.counts["image.embedded"] == 3 and all(asked) and bool(asked) == pinned


def test_the_model_runs_ahead_of_a_slow_writer_no_further_than_its_bound(begun, tmp_path, tiny_checkpoint, monkeypatch):
    job, units = begun(write_tar(tmp_path / "a.tar", [(f"{i}.jpg", picture(i)) for i in range(24)]))
    model, seen, write = Model(load(tiny_checkpoint, "cpu")), [], UnitWriter.write

    def slow(self, *args):
        time.sleep(0.1)
        seen.append(model.batches)
        return write(self, *args)

    monkeypatch.setattr(UnitWriter, "write", slow)
    monkeypatch.setattr(embed_units, "MAX_WAITING_BYTES", 1)
    before = set(threading.enumerate())
    embedder = Embedder(model, 2)
    (result,) = embed_units.embed_units(units, job, embedder, {}, 1)
    assert result.counts["image.embedded"] == 24 and set(threading.enumerate()) <= before
    assert seen == [min(place + 2, 12) for place in range(12)], (
        "one batch in the writer's hands, and one made meanwhile"
    )


def test_the_seconds_of_units_add_up_to_those_of_their_task(begun, tmp_path, tiny_checkpoint):
    job, units = begun(*(make_tar(tmp_path / f"{i}.tar", 3, first=3 * i) for i in range(6)))
    start = time.perf_counter()
    results = list(embed_units.embed_units(units, job, Embedder(load(tiny_checkpoint, "cpu"), 4), {}, 2))
    elapsed = time.perf_counter() - start
    total = sum((Counter(result.seconds) for result in results), Counter())
    assert len(results) == 6 and all(result.seconds["task"] > 0 for result in results)
    assert total["wait for embed"] <= total["task"] <= elapsed and total["decode / cores"] == pytest.approx(
        total["decode"] / 2
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep no such heap")
def test_free_pieces_of_the_heap_go_back_to_the_system():
    pieces = [(b"a" * 20_000, b"b" * 1_000) for _ in range(4_000)]
    kept = [short for _, short in pieces]
    del pieces
    before = resident()
    give_back_memory()
    assert before - resident() > 40_000_000 and len(kept) == 4_000


def test_it_is_done_while_a_task_goes_on(begun, tmp_path, tiny_checkpoint, monkeypatch):
    job, units = begun(make_tar(tmp_path / "a.tar", 20), batch_size=4)
    done = []
    monkeypatch.setattr(embed_units, "give_back_memory", lambda: done.append(1))
    for seconds, times in ((3600, 0), (0, 6)):  # five batches and the end mark
        monkeypatch.setattr(embed_units, "_TRIM_SECONDS", seconds)
        list(embed_units.embed_units(units, job, Embedder(load(tiny_checkpoint, "cpu"), 4), {}, 1))
        assert len(done) == times


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
