"""Every reader gives exactly these rows."""

import json
import os
from collections import Counter

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, picture, write_tar
from reading import read, write_side_files

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions, ShardError
from schemas.samples import Column


def test_a_shard_that_vanished_after_planning_says_so(tmp_path):
    path = make_tar(tmp_path / "a.tar", 1)
    unit = take_inventory([path], ReaderOptions()).units[0]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ShardError) as caught:
        list(read_unit(unit, ReaderOptions(), 3, Counter(), ""))
    assert caught.value.reason == "vanished"


def test_a_folder_gives_its_pictures_by_relative_path(tmp_path):
    folder = tmp_path / "photos"
    make_folder(folder, 2)
    make_folder(folder / "sub", 1, first=5)
    (folder / "sub" / "alone.PNG").write_bytes(picture(9, format_="PNG"))
    (folder / "000001.json").write_text('{"license": "mine"}')
    for name in (".hidden.jpg", "notes.jp2", "__MACOSX/000000.jpg", ".git/x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"1")
    options = ReaderOptions(columns=(Column("license", "license"),))
    rows, notes, errors = read(folder, tmp_path, options)
    assert [(row["key"], row["caption"], row["license"]) for row in rows] == [
        ("000000.jpg", "picture number 0", None),
        ("000001.jpg", "picture number 1", "mine"),
        ("sub/000005.jpg", "picture number 5", None),
        ("sub/alone.PNG", None, None),
    ]
    assert rows[1]["metadata"] == '{"license": "mine"}'
    assert take_inventory([str(folder)], options).detection == [f"{folder}: a folder of 4 pictures; not read: 1 .jp2"]


def test_a_glob_of_pictures_finds_the_captions_beside_them(tmp_path):
    make_folder(tmp_path / "photos", 3)
    rows, _, _ = read(tmp_path / "photos" / "*.jpg", tmp_path)
    assert [row["caption"] for row in rows] == [f"picture number {i}" for i in range(3)]


def test_a_picture_that_vanished_after_planning_is_a_reject(tmp_path):
    make_folder(tmp_path / "photos", 2)
    plan = take_inventory([str(tmp_path / "photos")], ReaderOptions())
    write_side_files(plan, tmp_path)
    (tmp_path / "photos" / "000000.jpg").unlink()
    (tmp_path / "photos" / "000001.txt").unlink()
    (batch,) = read_unit(plan.units[0], ReaderOptions(), 9, Counter(), str(tmp_path))
    rows = batch.to_pylist()
    assert rows[0]["image_reject"]["reason"] == "vanished" and rows[0]["caption"] == "picture number 0"
    assert rows[1]["caption_reject"]["reason"] == "vanished" and rows[1]["image"] == picture(1)


def test_parquet_gives_its_rows_across_row_groups(tmp_path):
    rows, notes, _ = read(make_parquet(tmp_path / "a.parquet", 12, row_group_size=5), tmp_path)
    assert [(row["key"], row["row"]) for row in rows] == [(f"{i:06d}", i) for i in range(12)]
    assert [row["image"] for row in rows] == [picture(i) for i in range(12)]
    assert not notes and rows[0]["metadata"] is None


def parquet(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("name", ["image", "image_bytes", "bytes", "jpg", "webp", "JPG"])
def test_the_image_column_is_found_by_its_name(name, tmp_path):
    rows, _, _ = read(parquet(tmp_path, **{name: [b"1", None]}), tmp_path)
    assert [row["image"] for row in rows] == [b"1", None]
    assert [row["key"] for row in rows] == ["0", "1"]


def test_a_hugging_face_image_is_a_struct(tmp_path):
    images = pa.array([{"bytes": b"1", "path": "a.jpg"}, None, {"bytes": None, "path": "b.jpg"}])
    rows, _, _ = read(parquet(tmp_path, image=images, text=["a", "b", ""]), tmp_path)
    assert [(row["image"], row["caption"]) for row in rows] == [(b"1", "a"), (None, "b"), (None, None)]


def test_rows_that_img2dataset_could_not_download_are_absent_in_both(tmp_path):
    path = parquet(
        tmp_path,
        jpg=[b"1", None, None, None],
        caption=["a", "b", "c", "d"],
        status=["success", "failed_to_download", "failed_to_resize", "mine"],
    )
    rows, _, _ = read(path, tmp_path)
    assert [(row["image"], row["caption"]) for row in rows] == [(b"1", "a"), (None, None), (None, None), (None, "d")]


def test_other_columns_without_bytes_are_metadata(tmp_path):
    path = parquet(tmp_path, image=[b"1"], caption=["a"], url=["http://x"], thumb=[b"2"], n=[3])
    rows, _, _ = read(path, tmp_path, ReaderOptions(columns=(Column("count", "n", "int8"),)))
    assert json.loads(rows[0]["metadata"]) == {"url": "http://x"} and rows[0]["count"] == 3


def test_one_of_several_captions_is_picked_by_its_index(tmp_path):
    path = parquet(tmp_path, image=[b"1", b"2", b"3"], captions=[["a", "b"], ["c"], None])
    rows, _, _ = read(path, tmp_path, ReaderOptions(caption_column="captions[1]"))
    assert [row["caption"] for row in rows] == ["b", None, None]


@pytest.mark.parametrize("make", [make_tar, make_parquet, make_folder], ids=["tar", "parquet", "folder"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_row(make, batch_size, tmp_path):
    path = tmp_path / {make_tar: "a.tar", make_parquet: "a.parquet", make_folder: "a"}[make]
    make(path, 11)
    assert read(path, tmp_path, batch_size=batch_size) == read(path, tmp_path, batch_size=3)


@pytest.mark.parametrize("make", [make_tar, make_parquet, make_folder], ids=["tar", "parquet", "folder"])
def test_the_limit_takes_the_first_samples_of_each_unit(make, tmp_path):
    path = tmp_path / {make_tar: "a.tar", make_parquet: "a.parquet", make_folder: "a"}[make]
    make(path, 11)
    rows, _, _ = read(path, tmp_path, ReaderOptions(limit=4))
    assert [row["row"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("make, name", [(make_tar, "a.tar"), (make_parquet, "a.parquet"), (make_folder, "a")])
def test_any_fsspec_file_system_gives_the_same_rows(make, name, tmp_path):
    make(tmp_path / name, 5)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / name), f"/readers/{name}", recursive=True)
    try:
        here, _, _ = read(tmp_path / name, tmp_path)
        there, _, _ = read(f"memory://readers/{name}", tmp_path)
        assert here == there and len(here) == 5
        assert take_inventory([f"memory://readers/{name}"], ReaderOptions()).units[0].shard.startswith("memory://")
    finally:
        memory.rm("/readers", recursive=True)


def test_links_in_a_folder_are_followed_once_and_a_broken_one_is_a_reject(tmp_path):
    make_folder(tmp_path / "real", 2)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("000000.jpg", "000000.txt"):
        (folder / name).symlink_to(tmp_path / "real" / name)
    (folder / "more").symlink_to(tmp_path / "real")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    rows, _, _ = read(folder, tmp_path)
    found = {row["key"]: (row["caption"], row["image_reject"] and row["image_reject"]["reason"]) for row in rows}
    assert found["000000.jpg"] == ("picture number 0", None)
    assert found["more/000001.jpg"] == ("picture number 1", None)
    assert found["gone.jpg"] == (None, "vanished")
    assert len(rows) == 4  # nothing through the loop, which leads to the folder itself


def test_a_cache_of_links_to_shards_is_a_folder_of_shards(tmp_path):
    make_tar(tmp_path / "blob", 2)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "00000.tar").symlink_to(tmp_path / "blob")
    for pattern in ("snapshot", "snapshot/*.tar", "snapshot/00000.tar"):
        assert len(read(tmp_path / pattern, tmp_path)[0]) == 2


def test_upper_case_captions_and_names_of_any_bytes_in_a_folder(tmp_path):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    for name, data in (
        (b"A.JPG", picture(0)),
        (b"A.TXT", b"a cat"),
        (b"\xff\xfe.jpg", picture(1)),
        (b"a::b.jpg", picture(2)),
    ):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    rows, _, _ = read(tmp_path / "photos", tmp_path)
    assert [row["image"] is not None for row in rows] == [True] * 3
    assert {row["key"]: row["caption"] for row in rows}["A.JPG"] == "a cat"


def test_a_users_own_status_column_may_hold_anything(tmp_path):
    odd = pa.array([b"\xff", b"failed_to_resize", b"x"]).view(pa.string())
    table = pa.table({"image": [picture(0), None, picture(2)], "caption": ["a", "b", "c"], "status": odd})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _, errors = read(tmp_path / "a.parquet", tmp_path)
    assert not errors and [row["caption"] for row in rows] == ["a", None, "c"]


def test_text_in_parquet_that_is_not_utf8_is_a_reject(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"gr\xfcn"]).buffers())
    path = parquet(tmp_path, image=[b"1"], caption=bad, key=bad, other=bad, mine=bad)
    rows, notes, errors = read(path, tmp_path, ReaderOptions(columns=(Column("mine", "mine"),)))
    assert not errors and rows[0]["key"] == "0" and rows[0]["mine"] is None
    assert rows[0]["caption_reject"]["reason"] == "not UTF-8" and json.loads(rows[0]["metadata"]) == {"other": None}
    assert notes == {"values of --columns mine that could not be cast": 1, "values that could not be cast": 1}


def test_dates_beyond_python_and_numbers_beyond_json_in_parquet(tmp_path):
    far = pa.array([10**7], pa.int32()).cast(pa.date32())
    path = parquet(
        tmp_path, image=[b"1"], day=far, ratio=[float("nan")], raw=pa.array([[b"\xff"]], pa.list_(pa.binary()))
    )
    rows, _, errors = read(path, tmp_path)
    assert not errors and json.loads(rows[0]["metadata"]).keys() == {"day", "ratio"}
    assert json.loads(rows[0]["metadata"])["ratio"] is None


@pytest.mark.parametrize(
    "caption", [pa.nulls(1), pa.array([7]), pa.array([{"a": 1}])], ids=["null", "number", "struct"]
)
def test_a_column_that_is_only_called_like_a_caption_is_passed_over(caption, tmp_path):
    rows, _, _ = read(parquet(tmp_path, image=[b"1"], caption=caption, text=["a cat"]), tmp_path)
    assert rows[0]["caption"] == (None if pa.types.is_null(caption.type) else "a cat")


def test_a_key_of_bytes_becomes_text_and_a_nested_column_is_no_key(tmp_path):
    assert read(parquet(tmp_path, image=[b"1"], uid=[b"\xff1"]), tmp_path)[0][0]["key"] == "\ufffd1"
    assert read(parquet(tmp_path, image=[b"1"], key=[["a"]]), tmp_path)[0][0]["key"] == "0"


def test_a_column_of_ones_own_may_lie_inside_an_object_of_json(tmp_path):
    fields = json.dumps({"meta": {"licence": "cc0", "tags": ["a", "b"]}, "n.m": 1})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(picture(0))
    (tmp_path / "photos" / "0.json").write_text(fields)
    write_tar(tmp_path / "a.tar", [("0.jpg", picture(0)), ("0.json", fields.encode())])
    (tmp_path / "l.jsonl").write_text(fields[:-1] + ', "uri": "photos/0.jpg"}\n')
    columns = (Column("licence", "meta.licence"), Column("tag", "meta.tags[1]"), Column("n", "n.m", "int8"))
    for path in ("photos", "a.tar", "l.jsonl"):
        ((row,), notes, _) = read(tmp_path / path, tmp_path, ReaderOptions(columns=columns))
        assert (row["licence"], row["tag"], row["n"], row["image"]) == ("cc0", "b", 1, picture(0)), path
