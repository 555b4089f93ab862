"""What is said of pictures that a viewer would turn, before any is embedded."""

import io
import os

import fsspec
import pytest
from conftest import make_folder, picture, write_tar
from PIL import Image

from clip_transforms.run.inspect_path import inspect_path
from clip_transforms.run.turned import turned
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import ReaderOptions


def stored_turned(orientation=6):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.open(io.BytesIO(picture(0))).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def told(*inputs):
    return turned(take_inventory([*map(str, inputs)], ReaderOptions()).side_files)


def test_of_many_pictures_some_are_looked_at_from_the_first_to_the_last(tmp_path):
    make_folder(tmp_path / "photos", 100)
    assert told(tmp_path / "photos") == []
    (tmp_path / "photos" / "000001.jpg").write_bytes(stored_turned())
    assert told(tmp_path / "photos") == [], "not looked at"
    for name in ("000000.jpg", "000099.jpg"):
        (tmp_path / "photos" / name).write_bytes(stored_turned())
    (note,) = told(tmp_path / "photos")
    assert note.startswith("note: 2 of 32 pictures looked at are stored turned")


@pytest.mark.parametrize("orientation, number", [(1, 0), (2, 1), (3, 1), (6, 1), (8, 1), (9, 0)])
def test_every_orientation_but_upright_counts(tmp_path, orientation, number):
    (tmp_path / "a.jpg").write_bytes(stored_turned(orientation))
    assert [note.startswith("note: 1 of 1 picture looked at is stored turned") for note in told(tmp_path)] == (
        [True] * number
    )


def test_pictures_that_cannot_be_read_are_passed_over(tmp_path):
    make_folder(tmp_path, 2)
    (tmp_path / "000000.jpg").write_bytes(stored_turned()[:40])
    assert told(tmp_path) == []
    (tmp_path / "000001.jpg").write_bytes(stored_turned())
    os.symlink(tmp_path, tmp_path / "b.jpg")  # a folder of a picture's name
    (note,) = told(tmp_path)
    assert note.startswith("note: 1 of 2 pictures looked at is")


def test_tars_and_pictures_elsewhere_are_not_looked_at(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", stored_turned())])
    assert told(tmp_path / "a.tar") == []
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe_file("/turned/a.jpg", stored_turned())
        assert told("memory://turned") == []
    finally:
        memory.rm("/turned", recursive=True)


def test_inspect_tells_of_them_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(stored_turned())
    note = dict(inspect_path(str(tmp_path)).facts)["note"]
    assert note.startswith("1 of 1 picture looked at is stored turned")
