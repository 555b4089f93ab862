"""Files appear whole under their final names, whatever happens beside them."""

import os

import pytest

from clip_transforms import storage
from clip_transforms.storage import writing


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return str(tmp_path / "scratch")


def test_files_appear_whole_on_disk_and_their_folder_is_synced_once_after_them(tmp_path, scratch, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (fsync(handle), events.append(os.readlink(f"/proc/self/fd/{handle}")))
    )
    monkeypatch.setattr(os, "replace", lambda local, path: (events.append((local, path)), replace(local, path)))
    wanted = {str(tmp_path / f"{i}.parquet"): bytes([i]) * i for i in range(150)}
    storage.write_files(wanted.items(), scratch)
    assert {path: open(path, "rb").read() for path in wanted} == wanted and not os.listdir(scratch)
    moves = [event for event in events if isinstance(event, tuple)]
    assert {path for _, path in moves} == wanted.keys()
    assert all(events.index(local) < events.index((local, path)) for local, path in moves)
    assert events.count(str(tmp_path)) == 1 and events[-1] == str(tmp_path)


def test_no_half_file_is_left_if_one_cannot_be_written_or_made(tmp_path, scratch, monkeypatch):
    real = writing._move

    def move(local, uri):
        if uri.endswith("b"):
            raise OSError(28, "No space left on device", uri)
        return real(local, uri)

    def making():
        yield str(tmp_path / "c"), b"c"
        raise ValueError("d cannot be made")

    monkeypatch.setattr(writing, "_move", move)
    with pytest.raises(OSError, match="No space left on device"):
        storage.write_files([(str(tmp_path / name), name.encode()) for name in "ab"], scratch)
    with pytest.raises(ValueError, match="d cannot be made"):
        storage.write_files(making(), scratch)
    assert sorted(os.listdir(tmp_path)) == ["a", "scratch"] and not os.listdir(scratch)
