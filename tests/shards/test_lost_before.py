"""Files of the field that somebody with the order to lose one lost: tars in zstd, empty columns, further pictures."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, write_tar
from reading import read

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.kinds import kind_of, stem
from clip_transforms.shards.unit import PlanError, ReaderOptions, part_name


def plan(*inputs, **options):
    return take_inventory([str(i) for i in inputs], ReaderOptions(**options))


def write(path, /, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def compress(tar, path):
    """Replace a tar by one that is compressed with zstd."""
    with open(tar, "rb") as file:
        path.write_bytes(pa.compress(file.read(), "zstd", asbytes=True))
    os.unlink(tar)
    return path


@pytest.mark.parametrize("name", ["a.tar.zst", "a.tzst", "a.tar"])
def test_a_tar_in_zstd_is_read(name, tmp_path):
    (tmp_path / "in").mkdir()
    compress(make_tar(tmp_path / "x.tar", 3), tmp_path / "in" / name)
    rows, notes, errors = read(tmp_path / "in", tmp_path)
    assert [(row["key"], row["image"]) for row in rows] == [(f"{i:06d}", picture(i)) for i in range(3)]
    assert not notes and not errors
    assert stem(f"/in/{name}").lower() == "/in/a" and part_name(f"/in/{name}").lower().startswith("a-")


@pytest.mark.parametrize("cut", [4, 20, 0.5, -1])
def test_a_tar_in_zstd_that_is_cut_short_is_a_reject(cut, tmp_path):
    path = compress(make_tar(tmp_path / "x.tar", 3), tmp_path / "a.tar.zst")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    rows, _, ((reason, message),) = read(path, tmp_path)
    assert reason == "unreadable" and len(rows) < 4 and message


@pytest.mark.parametrize("extension", ["pq", "parq", "PQ"])
def test_parquet_may_have_a_short_extension(extension, tmp_path):
    make_parquet(tmp_path / f"a.{extension}", 2)
    assert kind_of(f"a.{extension}") == "parquet"
    assert [row["key"] for row in read(tmp_path, tmp_path)[0]] == ["000000", "000001"]
    make_tar(tmp_path / "b.tar", 1)
    write(tmp_path / f"b.{extension}", url=["x"], caption=["c"])
    assert plan(tmp_path).detection[0].endswith("Parquet shard with images; not read: 1 sidecar Parquet")


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("name", ["image", "photo"])
def test_a_column_of_pictures_may_be_empty_in_one_file(name, rows, tmp_path):
    write(tmp_path / "a.parquet", **{name: pa.nulls(rows), "caption": pa.array(["a", "b"][:rows], pa.string())})
    write(tmp_path / "b.parquet", **{name: [picture(0)], "caption": ["c"]})
    found, _, errors = read(tmp_path, tmp_path)
    found.sort(key=lambda row: row["caption"])
    assert not errors
    assert [(row["image"], row["caption"]) for row in found] == [(None, "a"), (None, "b")][:rows] + [(picture(0), "c")]
    remarks = [line for line in plan(tmp_path).detection if line.startswith("note: no column")]
    assert len(remarks) == (name == "photo")


def test_a_column_of_another_type_stays_a_reject(tmp_path):
    write(tmp_path / "a.parquet", image=["a.jpg"], caption=["a"])
    make_parquet(tmp_path / "b.parquet", 1)
    found = plan(tmp_path)
    assert "image is string, but binary in the other files" in found.detection[-1] and len(found.broken) == 1


def test_parquet_with_images_beside_a_tar_of_its_name_is_named(tmp_path):
    for i in range(3):
        make_tar(tmp_path / f"{i}.tar", 1)
        make_parquet(tmp_path / f"{i}.parquet", 3, first=10)
    write(tmp_path / "1.parquet", url=["x"], caption=["c"])
    found = plan(tmp_path)
    assert found.detection == [
        f"{tmp_path}: 3 webdataset shards; not read: 3 sidecar Parquet",
        f"warning: {tmp_path}/0.parquet and 1 more: it has the name of a tar and holds images too, and is not read; if "
        "they are other samples, rename it, or give --input_format parquet to read Parquet alone",
    ]
    kind = "Parquet files with images and the name of a tar"
    assert found.left_out == {f"{tmp_path}/{i}.parquet": kind for i in (0, 2)}
    os.remove(tmp_path / "1.parquet")
    assert len(read(tmp_path, tmp_path, ReaderOptions(input_format="parquet"))[0]) == 6
    for i in (0, 2):
        os.rename(tmp_path / f"{i}.parquet", tmp_path / f"other-{i}.parquet")
    assert len(read(tmp_path, tmp_path)[0]) == 9


FURTHER = {
    "struct": [{"bytes": picture(5), "path": "x"}, None],
    "bytes": [None, picture(5)],
    "list": [[{"bytes": picture(5), "path": None}], []],
    "nested": [{"mask": picture(5), "n": 1}] * 2,
}
PLACES = {"struct": "image2", "bytes": "image2", "list": "image2[0]", "nested": "image2.mask"}


@pytest.mark.parametrize("case", FURTHER)
def test_a_second_column_of_pictures_is_named(case, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", image=[picture(0)] * 2, image2=FURTHER[case], h=[b"\0" * 70] * 2)
    found = plan(tmp_path)
    cure = f"--image_column '{PLACES[case]}' takes them instead"
    assert found.detection == [
        f"{tmp_path}: 2 Parquet shards with images",
        f"note: {tmp_path}/a.parquet: {PLACES[case]} holds pictures too, which are not read; {cure}",
    ]
    assert found.left_out == {f"{tmp_path}/a.parquet/{PLACES[case]}": "columns of further pictures"}
    asked = plan(tmp_path, image_column=PLACES[case])
    assert asked.detection == [f"{tmp_path}: 2 Parquet shards with images"] and asked.left_out == {}
    rows, _, _ = read(tmp_path, tmp_path, ReaderOptions(image_column=PLACES[case]))
    assert picture(5) in [row["image"] for row in rows]


def test_bytes_that_are_no_pictures_are_not(tmp_path):
    write(tmp_path / "a.parquet", jpg=[picture(0)], txt=[b"a cat"], json=[b'{"a": 1}'], npy=[b"\x93NUMPY" * 20])
    assert plan(tmp_path).detection == [f"{tmp_path}: 1 Parquet shard with images"]


def test_a_link_to_nothing_is_said_to_be_one(tmp_path):
    make_tar(tmp_path / "a.tar", 1)
    os.symlink("nowhere.tar", tmp_path / "b.tar")
    _, _, errors = read(tmp_path, tmp_path)
    message = f"after 0 samples: {tmp_path}/b.tar is a link to a file that does not exist"
    assert errors == [("vanished", message)]


STRUCTS = {"list": [[{"raw": "a", "n": 1}]], "struct": [{"en": {"raw": "a"}}], "lists": [[["a"]]]}
INNER = {"list": "x[0].raw", "struct": "x.en.raw", "lists": "x[0][0]"}


@pytest.mark.parametrize("captions", ["first", "all"])
@pytest.mark.parametrize("case", STRUCTS)
def test_the_text_inside_a_nested_caption_is_named_and_read(case, captions, tmp_path):
    write(tmp_path / "a.parquet", image=[picture(0)], x=STRUCTS[case])
    with pytest.raises(PlanError, match="must be text; choose with --caption_column") as caught:
        plan(tmp_path, caption_column="x", captions=captions)
    assert f"--caption_column '{INNER[case]}', which is a text inside it" in str(caught.value)
    rows, _, _ = read(tmp_path, tmp_path, ReaderOptions(caption_column=INNER[case], captions=captions))
    assert [row["caption"] for row in rows] == ["a"]


def test_the_nameless_files_of_hugging_faces_cache_are_not_told_as_unread(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    for i, name in enumerate(("a.parquet", "b.parquet")):
        make_parquet(tmp_path / "blobs" / f"{i}f", 1)
        os.symlink(f"../blobs/{i}f", tmp_path / "snapshots" / name)
    make_parquet(tmp_path / "blobs" / "2f", 1)
    found = plan(tmp_path)
    assert found.detection == [f"{tmp_path}: 2 Parquet shards with images; not read: 3 no extension"]
    assert found.left_out == {f"{tmp_path}/blobs/2f": "no extension"}


def test_further_texts_of_a_picture_are_named(tmp_path):
    make_folder(tmp_path / "in", 3)
    for name in ("000000.caption", "000000.TEXT", "000001.text"):
        (tmp_path / "in" / name).write_text("another")
    (tmp_path / "in" / "000002.caption").write_text("")
    kind = "further texts of a picture"
    names = ("000000.caption", "000000.TEXT", "000001.text")
    assert plan(tmp_path / "in").left_out == {f"{tmp_path}/in/{name}": kind for name in names}
    assert plan(tmp_path / "in", caption_column="text").left_out == {}


def test_further_texts_of_a_key_are_counted(tmp_path):
    members = [*pair("a", 1, text=b"another", caption_=b"x"), *pair("b", 2, text=b" "), *pair("c", 3, b"", text=b"one")]
    rows, notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert [row["caption"] for row in rows] == ["picture number 1", "picture number 2", "one"]
    note = "members that are further texts of a key, and were not read; --caption_column takes another extension"
    assert notes == {note: 1, ".caption_ members that were not read": 1}
    rows, notes, _ = read(tmp_path / "a.tar", tmp_path, ReaderOptions(caption_column="text"))
    assert [row["caption"] for row in rows] == ["another", None, "one"] and note not in notes


@pytest.mark.parametrize("name", [".hidden", ".cache/deep", "__MACOSX"])
def test_a_folder_of_hidden_files_alone_says_so(name, tmp_path):
    make_folder(tmp_path / "in" / name, 2)
    with pytest.raises(PlanError, match="holds nothing but hidden files and folders, which are left out; give such a"):
        plan(tmp_path / "in")
    assert len(read(tmp_path / "in" / name, tmp_path)[0]) == 2
    make_folder(tmp_path / "files", 1)
    for path in (tmp_path / "files").iterdir():
        path.rename(path.with_name(f".{path.name}"))
    with pytest.raises(PlanError, match="holds nothing but hidden files"):
        plan(tmp_path / "files")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match="is an empty folder"):
        plan(tmp_path / "empty")


JSON = {
    "an object over several lines": ("a.jsonl", '{\n "image": "a.jpg",\n "caption": "a"\n}\n' * 2),
    "captions by path": ("a.json", '{"images/a.jpg": "a", "images/b.jpg": "b"}'),
    "rows inside an object": ("a.json", '{"data": [{"image": "a.jpg", "caption": "a"}]}'),
}


@pytest.mark.parametrize("name, text", JSON.values(), ids=JSON)
def test_json_that_is_no_listing_is_told_what_a_row_is(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match="each row must be an object such as .* on one line or in one array") as caught:
        plan(tmp_path / name)
    assert "CSV" not in str(caught.value)
    (tmp_path / "a.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(PlanError, match="a CSV's first line must name its columns"):
        plan(tmp_path / "a.csv")
