"""Faults of the machine: a disk that is full or read-only, folders that go, threads and workers that die."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import tempfile

import fsspec
import pytest
import torch
from conftest import ROOT, files_of, make_tar, rows_of

from pipelines.embed import main

GO_ON = "what is committed stays; the same command goes on from there"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    return [make_tar(folder / f"{i}.tar", 30, first=30 * i) for i in range(3)]


@pytest.fixture(scope="module")
def calm_out(tars, tiny_checkpoint, tmp_path_factory):
    """What an undisturbed run makes of the tars."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert main(["--input", *tars, "--output", str(out), "--model", tiny_checkpoint, "--precision=fp32"]) == 0
    return out


@pytest.fixture(scope="module")
def calm(calm_out):
    return files_of(calm_out)


def assert_failed_well(code, said, out, calm, *pieces):
    """Exit code 1, one sentence that names the cause, and nothing that is not whole."""
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("the run failed: ")]
    assert "while running" not in line
    for piece in (*pieces, GO_ON):
        assert piece in line, line
    assert len(line) < 500, line
    found = files_of(out)
    assert all(calm[name] == data for name, data in found.items()) and len(found) < len(calm)
    assert not (out / "_SUCCESS").exists() and not (out / "_temporary").exists()


def assert_goes_on(embed, tars, out, calm):
    embed(*tars, output=out)
    assert files_of(out) == calm and (out / "_SUCCESS").exists() and not (out / "_temporary").exists()


# The disk


def test_a_file_that_may_not_grow_ends_the_run_with_the_cause(embed, tars, calm, tmp_path, capfd):
    largest = max(map(len, calm.values()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 4_000, before[1]))
        code = embed(*tars, output=tmp_path / "out", code=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_failed_well(code, capfd.readouterr().err, tmp_path / "out", calm, os.strerror(errno.EFBIG))
    assert_goes_on(embed, tars, tmp_path / "out", calm)


@contextlib.contextmanager
def mounted(path, *options):
    """A small file system of its own."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_full_while_writing(embed, tars, calm, tmp_path, capfd):
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "size=1m"):
        (disk / "ballast").write_bytes(bytes((1 << 20) - 80_000))
        code = embed(*tars, output=disk / "out", code=None)
        assert_failed_well(code, capfd.readouterr().err, disk / "out", calm, os.strerror(errno.ENOSPC))
        (disk / "ballast").unlink()
        assert_goes_on(embed, tars, disk / "out", calm)


FAULTS = {"full": errno.ENOSPC, "over quota": errno.EDQUOT, "read-only": errno.EROFS, "broken": errno.EIO}


@pytest.mark.parametrize(
    "step, fault",
    [("fsync", "full"), ("fsync", "broken"), ("replace", "full"), ("replace", "over quota"), ("replace", "read-only")],
)
def test_a_disk_that_fails_when_a_part_is_synced_or_moved(step, fault, embed, tars, calm, tmp_path, monkeypatch, capfd):
    """Simulated at the system call: a disk is not easily filled, or made read-only, at just this moment."""
    out, original, number = tmp_path / "out", getattr(os, step), FAULTS[fault]
    moves = []

    def failing(*args):
        if (out / "embeddings").exists() and len(list((out / "embeddings").iterdir())) == 1:
            moves.append(args)
            if len(moves) > 1:
                raise OSError(number, os.strerror(number), str(args[-1]))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        code = embed(*tars, output=out, code=None)
    assert_failed_well(code, capfd.readouterr().err, out, calm, os.strerror(number))
    assert len(list((out / "embeddings").iterdir())) == 1
    assert_goes_on(embed, tars, out, calm)


def test_an_output_on_a_read_only_disk_is_refused(embed, tars, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk):
        embed(*tars[:1], output=disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for out in (disk / "out", disk / "new"):
            with pytest.raises(ValueError, match=f"--output {out} cannot be written to"):
                embed(*tars, output=out)


def test_a_temporary_folder_that_is_missing(embed, tars, tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
            sentence = f"^the temporary folder {tmp_path}/gone cannot be written to: No such file or directory; make it"
            with pytest.raises(ValueError, match=sentence):
                embed(tars[0], output="memory://faults/out")
            assert not memory.exists("/faults")
        embed(tars[0], output="memory://faults/out")
    finally:
        if memory.exists("/faults"):
            memory.rm("/faults", recursive=True)


def test_a_machine_without_any_temporary_folder():
    """As Python finds it where the disks are full: Beam asks for the folder while it is imported."""
    program = "import tempfile; tempfile._candidate_tempdir_list = lambda: []; "
    program += "from pipelines.command import run_command; run_command('pipelines.embed')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "error: there is no temporary folder that can be written to; set TMPDIR to a folder with room\n"
    )


def test_a_temporary_folder_that_is_removed_meanwhile(embed, tars, calm, tmp_path, monkeypatch, capfd):
    import shutil

    from clip_transforms.parts import writer

    out, commit = tmp_path / "out", writer.UnitWriter.commit

    def commit_and_remove(self, *args):
        counts = commit(self, *args)
        shutil.rmtree(out / "_temporary")
        return counts

    with monkeypatch.context() as patch:
        patch.setattr(writer.UnitWriter, "commit", commit_and_remove)
        code = embed(*tars, output=out, code=None)
    assert_failed_well(code, capfd.readouterr().err, out, calm, os.strerror(errno.ENOENT), "_temporary")
    assert_goes_on(embed, tars, out, calm)


# Threads


@pytest.mark.parametrize(
    "place, error",
    [
        ("decode", MemoryError("no room")),
        ("picture", MemoryError("no room")),
        ("picture", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        ("tokenize", RuntimeError("a bug")),
        ("read", MemoryError("no room")),
    ],
    ids=["decode", "picture", "picture without a descriptor", "tokenize", "read"],
)
@pytest.mark.timeout(60)
def test_a_thread_that_dies_fails_the_run_with_the_cause(place, error, embed, tars, calm, tmp_path, monkeypatch, capfd):
    from clip_transforms.clip.plain_jpeg import PlainJpeg
    from clip_transforms.clip.tokenizer import Tokenizer
    from clip_transforms.engine import decode
    from clip_transforms.run import embed_units

    calls = []
    places = {
        "decode": (decode, "decode"),
        "picture": (PlainJpeg, "load"),
        "tokenize": (Tokenizer, "tokenize"),
        "read": (embed_units, "read_unit"),
    }
    target, name = places[place]
    original = getattr(target, name)

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == (40 if place in ("decode", "picture") else 2):
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying)
        code = embed(*tars, output=tmp_path / "out", code=None)
    assert_failed_well(code, capfd.readouterr().err, tmp_path / "out", calm, str(error))
    assert_goes_on(embed, tars, tmp_path / "out", calm)


# The model's device


def test_a_device_without_enough_memory_is_told_in_the_closing_lines(embed, tars, calm_out, tmp_path, capsys):
    from clip_transforms.clip.vision_transformer import VisionTransformer

    def cramped(module, args):
        if isinstance(module, VisionTransformer) and len(args[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(cramped)
    try:
        embed(*tars, output=tmp_path / "out")
    finally:
        hook.remove()
    assert "note: 9 times that a batch was halved" in capsys.readouterr().out
    ours, theirs = rows_of(tmp_path / "out"), rows_of(calm_out)
    assert [(r["shard"], r["row"]) for r in ours] == [(r["shard"], r["row"]) for r in theirs]
    assert len(ours) == 90 and all(r["image_embedding"] for r in ours)
