"""Finding files on this machine: links, errors of the machine, and file systems that cannot be reached."""

import errno
import os
import subprocess

import fsspec
import pytest

from clip_transforms import storage
from clip_transforms.storage import finding


class Entry:
    """An entry of a folder that cannot be looked at."""

    def __init__(self, path, error):
        self.path, self.error = path, error

    def stat(self):
        raise self.error


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENFILE])
def test_an_error_of_the_machine_is_not_taken_for_a_broken_link(number, tmp_path, monkeypatch):
    def scandir(path):
        return [Entry(f"{path}/a.jpg", OSError(number, "x"))]

    monkeypatch.setattr(finding.os, "scandir", scandir)
    with pytest.raises(OSError) as caught:
        storage.list_below(str(tmp_path))
    assert caught.value.errno == number


def test_a_broken_link_is_listed(tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "a.jpg")
    os.symlink("b.jpg", tmp_path / "b.jpg")  # to itself
    assert [(info.uri, info.stamp) for info in storage.list_below(str(tmp_path))] == [
        (f"{tmp_path}/a.jpg", "broken link"),
        (f"{tmp_path}/b.jpg", "broken link"),
    ]


class Poor(fsspec.AbstractFileSystem):
    """A file system that cannot be reached."""

    protocol, cachable, error = "poor", False, None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        raise self.error


@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError(errno.EMFILE, "x"), OSError),
        (MemoryError("x"), MemoryError),
        (RuntimeError("can't start new thread"), RuntimeError),
        (RuntimeError("no project id"), storage.StorageError),
        (PermissionError(errno.EACCES, "x"), storage.StorageError),
    ],
    ids=["descriptors", "memory", "threads", "its own", "forbidden"],
)
def test_a_file_system_that_cannot_be_reached(error, raised, monkeypatch):
    fsspec.register_implementation("poor", Poor, clobber=True)
    monkeypatch.setattr(Poor, "error", error)
    with pytest.raises((OSError, MemoryError, RuntimeError, ValueError)) as caught:
        storage.open_input("poor://x")
    assert type(caught.value) is raised


def below(*roots, **options):
    found = storage.list_folders([str(root) for root in roots], **options)
    return {
        os.path.basename(root): (
            [info.uri.removeprefix(f"{root}/") for info in files.files],
            [path.removeprefix(f"{root}/") for path in files.passed_over],
        )
        for root, files in found.items()
    }


@pytest.fixture
def tree(tmp_path):
    """A folder `in` with two files at two depths, and one beside it, `out`, with one more."""
    (tmp_path / "in" / "m" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "sub").mkdir(parents=True)
    for name in ("in/m/b", "in/m/deep/c", "out/sub/d"):
        (tmp_path / name).write_text(name)
    return tmp_path


LINKS = {
    "to itself": ({"in/a": "in"}, ["m/b", "m/deep/c"], ["a"]),
    "to the folder above": ({"in/m/deep/a": "in/m"}, ["m/b", "m/deep/c"], ["m/deep/a"]),
    "to a sibling, before and behind it": ({"in/a": "in/m", "in/z": "in/m"}, ["m/b", "m/deep/c"], ["a", "z"]),
    "to a folder within a sibling": ({"in/a": "in/m/deep"}, ["m/b", "m/deep/c"], ["a"]),
    "to a folder outside": ({"in/a": "out"}, ["a/sub/d", "m/b", "m/deep/c"], []),
    "twice to a folder outside": ({"in/z": "out", "in/m/a": "out"}, ["m/a/sub/d", "m/b", "m/deep/c"], ["z"]),
    "outside and back": ({"in/a": "out", "out/sub/y": "in/m"}, ["a/sub/d", "m/b", "m/deep/c"], ["a/sub/y"]),
    "to a link": ({"in/a": "in/z", "in/z": "out"}, ["a/sub/d", "m/b", "m/deep/c"], ["z"]),
    "to a file": ({"in/a": "in/m/b"}, ["a", "m/b", "m/deep/c"], []),
    "of a file to a file outside": ({"in/a": "out/sub/d"}, ["a", "m/b", "m/deep/c"], []),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_folder_is_listed_once_and_by_its_real_path_where_it_has_one(name, tree):
    links, files, passed_over = LINKS[name]
    for link, target in links.items():
        os.symlink(tree / target, tree / link)
    assert below(tree / "in") == {"in": (files, passed_over)}
    assert [info.uri.removeprefix(f"{tree}/in/") for info in storage.list_below(str(tree / "in"))] == files


def test_folders_that_are_given_together_are_listed_once_too(tree):
    os.symlink(tree / "out", tree / "in" / "a")
    os.symlink(tree / "in", tree / "again")
    files = ["m/b", "m/deep/c"]
    assert below(tree / "again", tree / "in", tree / "out") == {
        "again": ([], [str(tree / "again")]),
        "in": (files, ["a"]),
        "out": (["sub/d"], []),
    }
    assert below(tree / "again") == {"again": (["a/sub/d", *files], [])}
    # One below the other is listed below both: their paths are the same, so that whoever asks can tell.
    assert below(tree / "in" / "m", tree / "in")["m"] == (["b", "deep/c"], [])


def test_a_folder_that_is_skipped_does_not_hide_the_link_to_it(tree):
    os.rename(tree / "in" / "m", tree / "in" / ".m")
    os.symlink(".m", tree / "in" / "z")
    assert below(tree / "in", skip=lambda name: name.startswith(".")) == {"in": (["z/b", "z/deep/c"], [])}


def test_a_tree_may_be_deeper_than_the_recursion_limit(tmp_path):
    before = os.getcwd()
    try:
        for folder in [tmp_path, *["d"] * 1_500]:
            os.makedirs(folder, exist_ok=True)
            os.chdir(folder)
        open("a", "w").close()
        assert [info.uri.count("/d") for info in storage.list_below(str(tmp_path))] == [1_500]
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil calls itself a folder
