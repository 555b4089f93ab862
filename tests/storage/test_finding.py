"""What lies in a folder of this machine, and which errors say so."""

import errno
import os

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
def test_an_entry_that_the_machine_cannot_look_at_is_no_broken_link(number, tmp_path, monkeypatch):
    def scandir(path):
        return [Entry(f"{path}/a.jpg", OSError(number, "x"))]

    monkeypatch.setattr(finding.os, "scandir", scandir)
    with pytest.raises(OSError) as caught:
        storage.list_below(str(tmp_path))
    assert caught.value.errno == number


def test_a_link_to_nothing_is_listed_so_that_it_is_missed(tmp_path):
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
