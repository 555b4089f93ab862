"""Parquet files that name pictures by paths which begin in a folder above them, as Hugging Face's `datasets` does."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tar, picture, rows_of
from reading import read

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PICTURES = [picture(i) for i in range(6)]


def make(folder, by_path=range(6), inside="data", names="images/{}.jpg", column="image"):
    """Six rows and the files of their pictures; those of `by_path` have no bytes."""
    (folder / inside).mkdir(parents=True, exist_ok=True)
    rows = []
    for i, data in enumerate(PICTURES):
        path = folder / names.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        lacks = i in by_path
        rows.append({"bytes": None if lacks else data, "path": names.format(i) if lacks else f"{i}.jpg"})
    table = pa.table({column: pa.array(rows, IMAGE), "text": [f"t{i}" for i in range(6)]})
    pq.write_table(table, folder / inside / "train.parquet", row_group_size=3)
    return folder


def plan(*inputs, **options):
    return take_inventory([str(i) for i in inputs], ReaderOptions(**options))


def images(path, tmp_path, **options):
    rows, _, errors = read(path, tmp_path, ReaderOptions(**options))
    assert not errors
    return [row["image"] or row["image_reject"]["reason"] for row in rows]


LAYOUTS = {
    "datasets": {},
    "deeper": {"inside": "data/en/2024"},
    "another column": {"column": "photo"},
    "beside the file": {"inside": "."},
    "below the file": {"names": "data/images/{}.jpg", "inside": "data"},
    "in the folder itself": {"names": "{}.jpg"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_folder_above_that_holds_the_pictures_is_found(layout, tmp_path):
    folder = make(tmp_path / "in", **layout)
    found = plan(folder)
    assert found.detection[0] == f"{folder}: 1 Parquet shard with images" and found.left_out == {}
    assert images(folder, tmp_path) == PICTURES


def test_some_by_path_and_the_other_pictures_of_their_folder_are_named(tmp_path):
    folder = make(tmp_path / "in", by_path=(0, 2, 4))
    found = plan(folder)
    assert found.detection == [f"{folder}: 1 Parquet shard with images; not read: 3 pictures"]
    assert found.left_out == {f"{folder}/images/{i}.jpg": "pictures" for i in (1, 3, 5)}
    assert images(folder, tmp_path) == PICTURES


def test_other_pictures_and_files_that_hold_all_bytes_are_refused_as_before(tmp_path):
    folder = make(tmp_path / "in")
    (folder / "stray.jpg").write_bytes(picture(9))
    with pytest.raises(PlanError, match=r"holds 1 picture \(stray.jpg\) beside 1 parquet shard \(train.parquet\)"):
        plan(folder)
    assert images(folder, tmp_path, exclude=("stray.jpg",)) == PICTURES
    assert images(folder, tmp_path, input_format="parquet") == PICTURES
    with pytest.raises(PlanError, match="holds 6 pictures"):
        plan(make(tmp_path / "bytes", by_path=()))


@pytest.mark.parametrize("inner", ["data", "data/train.parquet"])
def test_where_the_input_is_too_deep_the_warning_names_a_folder_that_cures(inner, tmp_path):
    folder = make(tmp_path / "in")
    assert images(folder / inner, tmp_path) == ["not fetched"] * 6
    (warning,) = plan(folder / inner).detection[1:]
    cure = "give that folder as --input, and --exclude or --input_format parquet if it holds more"
    paths = f"the paths of its pictures, such as images/0.jpg, begin in {folder}"
    assert warning == f"warning: {folder}/data/train.parquet: {paths}; {cure}"
    make_tar(folder / "more.tar", 1)
    assert images(folder, tmp_path, input_format="parquet") == PICTURES
    assert images(folder, tmp_path, exclude=("*.tar",)) == PICTURES


def test_no_warning_where_the_pictures_are_found_or_nowhere(tmp_path):
    assert len(plan(make(tmp_path / "a", inside=".")).detection) == 1
    folder = make(tmp_path / "b")
    for i in range(6):
        os.remove(folder / "images" / f"{i}.jpg")
    assert len(plan(folder / "data").detection) == 1
    assert len(plan(make(tmp_path / "c", by_path=()) / "data").detection) == 1


def test_paths_do_not_leave_the_folder_where_they_begin(tmp_path):
    folder = make(tmp_path / "in", by_path=(0,))
    (tmp_path / "secret.jpg").write_bytes(picture(8))
    rows = [{"bytes": None, "path": path} for path in ("images/0.jpg", "../secret.jpg", f"{tmp_path}/secret.jpg")]
    table = pa.table({"image": pa.array(rows, IMAGE), "text": ["a", "b", "c"]})
    pq.write_table(table, folder / "data" / "train.parquet")
    assert images(folder, tmp_path) == [PICTURES[0], "not allowed", "not allowed"]


def test_the_same_on_another_file_system(tmp_path):
    make(tmp_path / "in")
    memory = fsspec.filesystem("memory")
    try:
        memory.put(str(tmp_path / "in"), "/paths", recursive=True)
        assert images("memory://paths", tmp_path) == PICTURES
        assert "begin in memory:///paths; give" in plan("memory://paths/data").detection[1]
    finally:
        memory.rm("/paths", recursive=True)


def test_a_dataset_of_rejects_is_made_anew_once_the_folder_above_is_given(embed, tmp_path):
    folder = make(tmp_path / "in")
    embed(folder / "data", output=tmp_path / "out", code=3)
    assert len(rows_of(tmp_path / "out", "rejects")) == 6
    embed(folder, output=tmp_path / "out")
    assert rows_of(tmp_path / "out", "rejects") == [] and len(rows_of(tmp_path / "out")) == 6
    before = (tmp_path / "out" / "run.json").read_text()
    embed(folder, output=tmp_path / "out")
    assert '"skipped": 0' in before and '"skipped": 1' in (tmp_path / "out" / "run.json").read_text()
