"""Temporary folders of the dead are removed, those of the living never."""

import os
import subprocess
import sys
import textwrap

from conftest import ROOT

from clip_transforms.parts.run_folder import RunFolder, new_run_id


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
        from clip_transforms.parts.run_folder import RunFolder
        folder = RunFolder({str(tmp_path)!r}, "20200101-000000-other")
        open(folder.uri + "/work", "w").close()
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
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
