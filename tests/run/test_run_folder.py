"""Temporary folders of the dead are removed, those of the living never."""

import os
import subprocess
import textwrap

import pytest
from conftest import ROOT, make_tar
from forked import Process

from clip_transforms import ClipSpec
from clip_transforms.run.begin import begin_run
from clip_transforms.run.plan import plan_run
from clip_transforms.run.run_folder import BeginError, RunFolder, new_run_id
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import PlanError


def test_a_folder_lives_as_long_as_its_run(tmp_path):
    with RunFolder(str(tmp_path), new_run_id()) as folder:
        assert os.path.isdir(folder.uri)
    assert not (tmp_path / "_temporary").exists()


def test_a_run_leaves_no_file_open(tmp_path):
    for detached in (False, True):
        RunFolder(str(tmp_path), new_run_id(), detached).close()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.lexists(link) and str(tmp_path) in os.readlink(link)]


def test_a_living_run_is_left_alone_and_a_dead_one_is_removed(tmp_path):
    code = textwrap.dedent(
        f"""
        import sys
        from clip_transforms.run.run_folder import RunFolder
        folder = RunFolder({str(tmp_path)!r}, "20200101-000000-other")
        open(folder.uri + "/work", "w").close()
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    other = Process("-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout.readline() == "ready\n"
        RunFolder(str(tmp_path), new_run_id()).close()
        assert (tmp_path / "_temporary" / "20200101-000000-other" / "work").exists()
    finally:
        other.kill()
        other.wait()
    RunFolder(str(tmp_path), new_run_id()).close()
    assert not (tmp_path / "_temporary").exists()


def test_a_detached_run_is_never_taken_for_dead_before_a_week(tmp_path):
    living = RunFolder(str(tmp_path), new_run_id(), detached=True)
    old = RunFolder(str(tmp_path), "20200101-000000-old", detached=True)
    RunFolder(str(tmp_path), new_run_id()).close()
    assert os.path.isdir(living.uri) and not os.path.isdir(old.uri)


def test_a_folder_whose_lock_was_removed_is_dead(tmp_path):
    dead = tmp_path / "_temporary" / "29990101-000000-dead"
    dead.mkdir(parents=True)
    (dead / "work").write_text("")
    RunFolder(str(tmp_path), new_run_id()).close()
    assert not (tmp_path / "_temporary").exists()


def test_a_run_of_another_machine_whose_lock_is_not_seen_here_is_left_alone_for_a_week(tmp_path):
    # Each was killed, as far as this machine can tell; the last is one in the middle of being made.
    names = {"29990101-000000-away": True, "20200101-000000-long": False, ".29990101-000000-new": True}
    for name in names:
        (tmp_path / "_temporary" / name).mkdir(parents=True)
        if not name.startswith("."):
            (tmp_path / "_temporary" / name / "lock").write_text("another-host\nanother-kernel")
    RunFolder(str(tmp_path), new_run_id()).close()
    assert {name: (tmp_path / "_temporary" / name).exists() for name in names} == names


def test_a_lock_of_this_machine_under_another_host_name_counts(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path), "29990101-000000-killed")
    os.close(folder._lock)  # as its end would
    monkeypatch.setattr("socket.gethostname", lambda: "the-next-container")
    RunFolder(str(tmp_path), new_run_id()).close()
    assert not os.path.exists(folder.uri)


def test_a_folder_appears_with_its_lock_held(tmp_path, monkeypatch):
    seen, rename = [], os.rename

    def watch(old, new):
        with open(os.path.join(old, "lock")) as lock:
            seen.append(bool(lock.read()))
        RunFolder._remove_dead(other)  # of a machine where `alone` does not hold
        rename(old, new)

    other = RunFolder(str(tmp_path), new_run_id())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", watch)
        folder = RunFolder(str(tmp_path), new_run_id())
    RunFolder._remove_dead(other)
    assert seen == [True] and os.path.isdir(folder.uri)
    folder.close(), other.close()


def test_a_run_begins_though_another_removes_the_parent_at_that_moment(tmp_path, monkeypatch):
    mkdir, gone = os.mkdir, []

    def late(path, *args, **kwargs):
        if "_temporary/." in os.fspath(path) and not gone:
            gone.append(os.rmdir(os.path.dirname(path)))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", late)
    with RunFolder(str(tmp_path), new_run_id()) as folder:
        assert gone and os.path.isdir(folder.uri)


def test_a_run_that_is_refused_while_it_begins_leaves_nothing(tmp_path):
    listing, out = tmp_path / "list.csv", tmp_path / "new" / "out"
    listing.write_text("caption\na red star\n")
    plan = plan_run(Settings((str(listing),), str(out), ClipSpec("demo")))
    listing.write_text("caption\na blue star\n")
    with pytest.raises(PlanError, match="was changed while the run was planned"):
        begin_run(plan, 1, ())
    assert not (tmp_path / "new").exists()
    out.mkdir(parents=True)  # but what was there stays
    with pytest.raises(PlanError):
        begin_run(plan, 1, ())
    assert list(out.iterdir()) == []


def test_an_output_that_fails_once_something_is_written_is_no_refusal(tmp_path, monkeypatch):
    plan = plan_run(Settings((make_tar(tmp_path / "a.tar", 1),), str(tmp_path / "out"), ClipSpec("demo")))
    replace = os.replace

    def full(old, new):
        replace(old, new)
        if os.path.basename(new) == "_dataset.json":
            (tmp_path / "out" / "embeddings").write_text("in the way")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BeginError, match="embeddings cannot be made: File exists"):
        begin_run(plan, 1, ())
    assert not (tmp_path / "out" / "_temporary").exists()
