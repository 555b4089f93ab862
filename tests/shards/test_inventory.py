"""Which files are taken, how they are cut, and how parts are named."""

import hashlib
import os
import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, write_tar

from clip_transforms.shards import inventory
from clip_transforms.shards.cut import cut_folder
from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.unit import ReaderOptions, part_name
from clip_transforms.storage import FileInfo


def plan(*inputs, **options):
    return take_inventory([str(i) for i in inputs], ReaderOptions(**options))


@pytest.fixture
def tars(tmp_path):
    for i in range(3):
        make_tar(tmp_path / f"{i:05d}.tar", 1)
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "*.tar", "{00000..00002}.tar", "0000[0-2].tar"], ids=str)
def test_a_folder_a_glob_and_a_brace_pattern_name_the_same_shards(pattern, tars):
    assert [os.path.basename(unit.shard) for unit in plan(tars / pattern).units] == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]


def test_a_file_of_inputs_and_a_shard_that_is_named_twice(tars):
    (tars / "list.txt").write_text(f"{tars}/00000.tar\n\n{tars}/0000*.tar\n")
    assert len(plan(f"@{tars}/list.txt", tars / "00002.tar").units) == 3


def test_many_files_that_are_named_one_by_one_are_one_line_and_few_requests(monkeypatch):
    memory = fsspec.filesystem("memory")
    for i in range(300):
        memory.pipe(f"/many/{i:03d}.tar", b"")
    asked, info = [], type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda *args: asked.append(args) or info(*args))
    found = plan("memory://many/{000..299}.tar")
    assert found.detection == ["memory:///many/(300 named files): 300 webdataset shards"]
    assert [unit.shard for unit in found.units] == [f"memory:///many/{i:03d}.tar" for i in range(300)]
    assert len(asked) < 10
    with pytest.raises(PlanError, match="many/300.tar matches nothing"):
        plan("memory://many/{000..300}.tar")


def test_a_file_under_two_spellings_is_read_once(tmp_path):
    make_folder(tmp_path, 2)
    tar = make_tar(tmp_path / "a.tar", 1)
    (tmp_path / "l.csv").write_text("caption\na\n")
    spelt = [
        f"{place}{name}" for name in ("/a.tar", "/000000.jpg", "/l.csv") for place in (tmp_path, f"file://{tmp_path}")
    ]
    found = plan(*spelt, tmp_path / "." / "a.tar")
    assert [(unit.format, unit.stop) for unit in found.units] == [("folder", 1), ("webdataset", 0), ("listing", 1)]
    assert tar in {unit.shard for unit in found.units}


def test_sidecars_and_statistics_are_no_shards(tars):
    for i in range(3):
        pq.write_table(pa.table({"url": ["x"]}), tars / f"{i:05d}.parquet")
        (tars / f"{i:05d}_stats.json").write_text("{}")
    found = plan(tars)
    assert {unit.format for unit in found.units} == {"webdataset"}
    assert found.detection == [f"{tars}: 3 webdataset shards; not read: 3 _stats.json, 3 sidecar Parquet"]


def test_a_parquet_file_beside_a_folder_of_its_stem_is_a_sidecar(tmp_path):
    make_folder(tmp_path / "00000", 2)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "00000.parquet")
    assert [unit.format for unit in plan(tmp_path).units] == ["folder"]


def test_pictures_beside_tars_are_refused_and_each_cure_cures(tars):
    make_folder(tars / "more", 2)
    message = re.escape(f"--input {tars} holds 2 pictures (000000.jpg, …) beside 3 webdataset shards (00000.tar, …); ")
    with pytest.raises(PlanError, match=message) as caught:
        plan(tars)
    assert "--input_format folder takes the pictures, --input_format webdataset the shards" in str(caught.value)
    assert [unit.format for unit in plan(tars, input_format="folder").units] == ["folder"]
    found = plan(tars, input_format="webdataset")
    assert {unit.format for unit in found.units} == {"webdataset"} and "2 pictures" in found.detection[0]
    assert {unit.format for unit in plan(tars, exclude=("more",)).units} == {"webdataset"}
    both = plan(tars / "**" / "*.jpg", tars / "*.tar").units
    assert [unit.format for unit in both] == ["folder", *["webdataset"] * 3] and both[0].stop == 2


@pytest.mark.parametrize(
    "rows, group, cuts",
    [
        (25_000, 5_000, [(0, 2, 0), (2, 4, 10_000), (4, 5, 20_000)]),
        (10_000, 10_000, [(0, 1, 0)]),
        (30_000, 15_000, [(0, 1, 0), (1, 2, 15_000)]),
        (10_001, 100, [(0, 100, 0), (100, 101, 10_000)]),
        (0, 100, [(0, 0, 0)]),
    ],
)
def test_parquet_is_cut_at_row_groups_up_to_ten_thousand_rows(rows, group, cuts, tmp_path):
    table = pa.table({"image": pa.array([b"1"] * rows, pa.binary())})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        if rows:
            writer.write_table(table, row_group_size=group)
    assert [(unit.start, unit.stop, unit.first_row) for unit in plan(tmp_path / "a.parquet").units] == cuts


def folder_units(keys):
    images = [FileInfo(f"/photos/{key}", 10, "10-1") for key in sorted(keys)]
    return cut_folder("/photos", "/photos", "files-0.parquet", images, images, ReaderOptions())[0]


def test_a_folder_is_cut_where_its_paths_say_so_and_a_new_picture_touches_one_unit():
    keys = [f"{i:06d}.jpg" for i in range(20_000)]
    before = folder_units(keys)
    after = folder_units([*keys, "010000b.jpg"])
    assert 5 < len(before) < 25 and max(unit.stop - unit.start for unit in before) <= 16_384
    for unit in before[:-1]:
        last = keys[unit.stop - 1]
        assert int.from_bytes(hashlib.sha256(last.encode()).digest()[:8], "big") % 2048 == 0
    changed = {(u.shard, u.stamp) for u in after} - {(u.shard, u.stamp) for u in before}
    assert len(changed) == 1 and {u.shard for u in after} == {u.shard for u in before}


def test_a_folder_without_a_fitting_path_is_cut_at_the_maximum():
    keys = [k for k in (f"{i:06d}.jpg" for i in range(40_000))]
    keys = [k for k in keys if int.from_bytes(hashlib.sha256(k.encode()).digest()[:8], "big") % 2048]
    sizes = [unit.stop - unit.start for unit in folder_units(keys[:20_000])]
    assert sizes == [16_384, 20_000 - 16_384]


@pytest.mark.parametrize("touch", ["000001.jpg", "000001.txt"])
def test_the_stamp_of_a_folder_changes_with_any_of_its_files(touch, tmp_path):
    make_folder(tmp_path, 3)
    before = plan(tmp_path).units[0]
    (tmp_path / touch).write_bytes((tmp_path / touch).read_bytes() + b" ")
    after = plan(tmp_path).units[0]
    assert before.stamp != after.stamp and before.part == after.part


def test_the_stamp_of_a_file_changes_with_its_time_though_not_its_size(tmp_path):
    make_tar(tmp_path / "a.tar", 1)
    before = plan(tmp_path).units[0]
    os.utime(tmp_path / "a.tar", ns=(1, before.stamp and 123_456_789_012_345_678))
    assert plan(tmp_path).units[0].stamp != before.stamp


@pytest.mark.parametrize(
    "shard", ["/a/00000.tar", "/a/_hidden.tar", "/a/.x.parquet", "/a/ö ü.tar", "/a/" + "x" * 300, "/photos#", "/a/…"]
)
def test_a_part_is_called_after_its_shard_and_never_hidden(shard):
    name = part_name(shard)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,79}-[0-9a-f]{12}", name)
    assert name != part_name(shard + "2") and name != part_name(shard, "0-1")


def numbers(path):
    pq.write_table(pa.table({"n": [1]}), path)
    return path


@pytest.mark.parametrize(
    "prepare, options, sentence",
    [
        (lambda p: p / "nothing", {}, "matches nothing"),
        (lambda p: p / "*.tar", {}, "matches nothing"),
        (lambda p: (p / "empty").mkdir() or p / "empty", {}, "empty folder"),
        (lambda p: (p / "a.xyz").write_text("") and None or p / "a.xyz", {}, "holds no pictures"),
        (lambda p: make_tar(p / "a.tar", 1), {"input_format": "parquet"}, "--input_format parquet"),
        (lambda p: make_tar(p / "a.tar", 1), {"key_column": "x"}, "--key_column x is for Parquet files, TFRecords"),
        (lambda p: make_parquet(p / "a.parquet", 1), {"image_extension": "x"}, "--image_extension x is for webdataset"),
        (lambda p: make_parquet(p / "a.parquet", 1), {"image_column": "x"}, "--image_column x is not a column"),
        (lambda p: numbers(p / "a.parquet"), {"image_column": "n"}, "must be binary"),
        (lambda p: numbers(p / "a.parquet"), {}, "no column of image bytes, of URIs or of captions (columns: n)"),
        (lambda p: make_parquet(p / "a.parquet", 1), {"caption_column": "image"}, "must be text"),
        (lambda p: make_parquet(p / "a.parquet", 1), {"caption_column": "caption[0]"}, "not a list"),
        (lambda p: make_parquet(p / "a.parquet", 1), {"key_column": "x"}, "--key_column x is not a column"),
        (lambda p: (p / "a.parquet").write_bytes(b"PAR1") and p / "a.parquet", {}, "not readable as Parquet"),
        (lambda p: f"@{p}/none", {}, "cannot be read"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_sentence(prepare, options, sentence, tmp_path):
    with pytest.raises(PlanError, match=re.escape(sentence)):
        plan(prepare(tmp_path), **options)


def test_several_captions_without_an_index_are_refused_with_the_cure(tmp_path):
    pq.write_table(pa.table({"image": [b"1"], "captions": [["a"]]}), tmp_path / "a.parquet")
    with pytest.raises(PlanError, match=re.escape("--caption_column 'captions[0]'")):
        plan(tmp_path / "a.parquet", caption_column="captions")


def test_planning_reads_no_image(tmp_path):
    path = write_tar(tmp_path / "a.tar", [])
    os.chmod(path, 0)  # root reads all the same, so the count of opened files is what is compared
    opened = []
    original = inventory.storage.open_input
    inventory.storage.open_input = lambda uri: opened.append(uri) or original(uri)
    try:
        plan(path)
    finally:
        inventory.storage.open_input = original
    assert opened == []


def test_a_glob_or_a_named_picture_does_not_replace_the_unit_of_the_folder(tmp_path):
    make_folder(tmp_path, 3)
    whole, some, one = (plan(tmp_path / p).units for p in ("", "*1.jpg", "000001.jpg"))
    assert len({unit.part for units in (whole, some, one) for unit in units}) == 3
    assert len({unit.shard for units in (whole, some, one) for unit in units}) == 3


def test_pictures_that_the_shell_named_one_by_one_are_one_source(tmp_path):
    make_folder(tmp_path / "a", 3)
    make_folder(tmp_path / "b", 2)
    found = plan(*sorted(tmp_path.glob("*/*.jpg")))
    assert [(unit.format, unit.stop - unit.start) for unit in found.units] == [("folder", 3), ("folder", 2)]


def test_an_output_below_the_input_is_left_out_of_it(tmp_path):
    make_folder(tmp_path, 3)
    (tmp_path / "out" / "embeddings").mkdir(parents=True)
    (tmp_path / "out" / "_dataset.json").write_text("{}")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "out" / "embeddings" / "x.parquet")
    found = plan(tmp_path)
    assert [unit.format for unit in found.units] == ["folder"]
    assert "left out: 1 dataset of this program" in found.detection[0]


def test_an_output_that_the_shell_named_with_the_inputs_is_left_out_and_alone_refused(tmp_path):
    make_folder(tmp_path / "a", 3)
    (tmp_path / "out" / "embeddings").mkdir(parents=True)
    (tmp_path / "out" / "_dataset.json").write_text("{}")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "out" / "embeddings" / "x.parquet")
    found = plan(*sorted(tmp_path.iterdir()))
    assert [unit.format for unit in found.units] == ["folder"]
    assert found.detection[1] == f"{tmp_path}/out: nothing to read; left out: 1 dataset of this program"
    with pytest.raises(PlanError, match="out holds no pictures"):
        plan(tmp_path / "out")


def test_two_globs_of_one_folder_are_two_sources(tmp_path):
    make_folder(tmp_path, 12)
    found = plan(tmp_path / "00000*.jpg", tmp_path / "00001*.jpg")
    assert sorted(unit.stop - unit.start for unit in found.units) == [2, 10]


@pytest.mark.parametrize("name", ["a [2020]", "br{x,y}", "bad{", "a::b", "%41", "ö#1"])
def test_a_folder_of_any_name_can_be_given(name, tmp_path):
    make_folder(tmp_path / name, 2)
    assert [unit.stop for unit in plan(tmp_path / name).units] == [2]


def test_a_list_of_inputs_must_hold_some_and_no_other_list(tmp_path):
    for text in ("", "\n\n", f"@{tmp_path}/list.txt"):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(PlanError, match="must hold inputs"):
            plan(f"@{tmp_path}/list.txt")


def test_a_list_of_inputs_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a\0.tar\n")
    with pytest.raises(PlanError, match="list.txt has a zero byte in it; it must be a text file in UTF-8"):
        plan(f"@{tmp_path}/list.txt")


def test_a_parquet_file_of_words_beside_pictures_is_left_out_and_the_line_says_so(tmp_path):
    make_folder(tmp_path, 2)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "metadata.parquet")
    (line,) = plan(tmp_path).detection
    assert line == f"{tmp_path}: a folder of 2 pictures; not read: 1 sidecar Parquet"


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"1"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PlanError, match="two columns called caption"):
        plan(tmp_path / "a.parquet")


def test_with_input_format_parquet_a_file_beside_a_tar_of_its_stem_is_a_shard(tmp_path):
    make_tar(tmp_path / "a.tar", 1)
    make_parquet(tmp_path / "a.parquet", 2)
    assert [unit.format for unit in plan(tmp_path).units] == ["webdataset"]
    assert [unit.format for unit in plan(tmp_path, input_format="parquet").units] == ["parquet"]


def test_a_folder_with_links_to_it_is_read_once_and_the_line_says_so(tmp_path):
    make_folder(tmp_path / "in" / "photos", 3)
    (tmp_path / "in" / "again").symlink_to("photos")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    found = plan(tmp_path / "in")
    assert [(unit.stop, unit.shard) for unit in found.units] == [(3, f"{tmp_path}/in#")]
    assert found.detection == [
        f"{tmp_path}/in: a folder of 3 pictures; not read: 2 linked folders that are read under another path"
    ]


@pytest.mark.parametrize("inputs", [("again", "photos"), ("photos", "again"), ("*",)], ids=str)
def test_a_link_that_is_given_beside_its_folder_is_read_once(inputs, tmp_path):
    make_folder(tmp_path / "photos", 3)
    (tmp_path / "again").symlink_to("photos")
    found = plan(*(tmp_path / name for name in inputs))
    assert [unit.shard for unit in found.units] == [f"{tmp_path}/photos#"]
    line = f"{tmp_path}/again: nothing to read; not read: 1 linked folder that is read under another path"
    assert line in found.detection
    assert [unit.shard for unit in plan(tmp_path / "again").units] == [f"{tmp_path}/again#"]


def test_pictures_in_a_hidden_folder_are_read_through_a_link_to_it(tmp_path):
    make_folder(tmp_path / "in" / ".store", 3)
    (tmp_path / "in" / "photos").symlink_to(".store")
    assert [unit.stop for unit in plan(tmp_path / "in").units] == [3]


def test_a_folder_of_links_to_itself_alone_is_empty(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    with pytest.raises(PlanError, match="in is an empty folder"):
        plan(tmp_path / "in")


def test_links_to_files_are_pictures_of_their_own(tmp_path):
    """They have keys and captions of their own; many datasets are laid out by links."""
    make_folder(tmp_path / "all", 2)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cat.jpg").symlink_to(tmp_path / "all" / "000000.jpg")
    (tmp_path / "train" / "cat.txt").write_text("a cat")
    assert [unit.stop for unit in plan(tmp_path).units] == [3]
