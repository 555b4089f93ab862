"""Captions, keys and URIs that a Parquet file holds as bytes, as Impala, Hive and old versions of Spark write text."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, pair, picture, rows_of, write_tar
from reading import read
from tfrecords import write_tfrecord

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions

BYTES = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}


def write(path, /, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def captions(path, tmp_path, **options):
    rows, notes, errors = read(path, tmp_path, ReaderOptions(**options))
    assert not errors
    return [row["caption"] or (row["caption_reject"] and row["caption_reject"]["reason"]) for row in rows]


@pytest.mark.parametrize("type_", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("name", ["caption", "txt", "TEXT"])
def test_a_caption_in_bytes_beside_a_picture_is_read(name, type_, tmp_path):
    texts = pa.array([b"a cat", " é\n".encode(), b" ", None, b"\xff"], pa.binary()).cast(type_)
    path = write(tmp_path / "a.parquet", jpg=pa.array([picture(0)] * 5), **{name: texts})
    assert captions(path, tmp_path) == ["a cat", "é", None, None, "not UTF-8"]


def test_a_column_of_text_goes_before_one_of_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", jpg=[picture(0)], caption=[b"\x93NUMPY"], text=["a cat"])
    assert captions(path, tmp_path) == ["a cat"]
    assert captions(path, tmp_path, caption_column="caption") == ["not UTF-8"]


def test_caption_column_and_lists_take_bytes(tmp_path):
    columns = {"a": pa.array([b"x"]), "l": pa.array([[b"y", b"z"]]), "h": pa.array([b"0" * 16], pa.binary(16))}
    path = write(tmp_path / "a.parquet", image=[picture(0)], **columns)
    assert captions(path, tmp_path, caption_column="a") == ["x"]
    assert captions(path, tmp_path, caption_column="l[1]") == ["z"]
    with pytest.raises(PlanError, match=r"the caption column h is fixed_size_binary\[16\], but it must be text"):
        take_inventory([str(path)], ReaderOptions(caption_column="h"))


@pytest.mark.parametrize("type_", BYTES.values(), ids=BYTES)
def test_a_listing_whose_texts_are_bytes_is_read(type_, tmp_path):
    make_folder(tmp_path, 2)
    columns = {
        "url": [b"000000.jpg", b"000001.jpg", None],
        "caption": [b"a cat", b"\xff", "é".encode()],
        "uid": [b"k", None, b"\xff"],
        "hash": [b"\0" * 80] * 3,
    }
    path = write(tmp_path / "a.parquet", **{name: pa.array(v, pa.binary()).cast(type_) for name, v in columns.items()})
    line = "the first values of hash are no pictures, so none are read; --image_column 'hash' takes them as images all"
    assert take_inventory([str(path)], ReaderOptions()).detection == [
        f"{path}: 1 listing",
        f"note: {path}: {line} the same",
    ]
    rows, _, errors = read(path, tmp_path)
    assert not errors and [row["image"] for row in rows] == [picture(0), picture(1), None]
    assert [row["caption"] for row in rows] == ["a cat", None, "é"]
    assert rows[1]["caption_reject"]["message"] == "not UTF-8 at byte 0: b'\\xff'"
    assert [row["key"] for row in rows] == ["k", "1", "?"]


def test_a_listing_of_uris_in_bytes_alone_is_one(tmp_path):
    make_folder(tmp_path, 1)
    path = write(tmp_path / "a.parquet", path=[b"000000.jpg"], x=[1])
    rows, _, _ = read(path, tmp_path)
    assert rows[0]["image"] == picture(0) and rows[0]["metadata"] == '{"path": "000000.jpg", "x": 1}'


def test_pictures_are_not_taken_for_uris(tmp_path):
    path = write(tmp_path / "a.parquet", image=[picture(0)], caption=["a"])
    rows, _, _ = read(path, tmp_path, ReaderOptions(input_format="listing"))
    assert [(row["image"], row["image_reject"], row["caption"]) for row in rows] == [(None, None, "a")]


SEEN = {
    "numbers": ({"caption": [1], "width": [2.5], "alt": ["x"]}, ["alt"]),
    "a map": ({"caption": pa.array([[("en", "x")]], pa.map_(pa.string(), pa.string()))}, []),
    "structs and lists": ({"s": [{"en": "x", "n": 1}], "l": [["x"]], "i": [[1]]}, ["l[0]", "s.en"]),
}


@pytest.mark.parametrize("columns, names", SEEN.values(), ids=SEEN)
def test_only_places_that_caption_column_takes_are_named(columns, names, tmp_path):
    path = write(tmp_path / "a.parquet", image=[picture(0)], **columns)
    _, notes, _ = read(path, tmp_path)
    assert sorted(note for note in notes if note.startswith("field.")) == [f"field.{name}" for name in names]
    for name in names:
        assert captions(path, tmp_path, caption_column=name) == ["x"]


EMPTY = {"empty": b"", "white space": b" \n", "a byte-order mark": b"\xef\xbb\xbf"}


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY)
def test_where_a_text_is_empty_the_next_place_that_has_a_caption_counts(text, tmp_path):
    members = [
        *pair("a", 1, text, json=b'{"caption": "json"}'),
        *pair("b", 2, text, text=b"cap", json=b'{"caption": "json"}'),
        *pair("c", 3, text),
        *pair("d", 4, text, json=b'{"caption": " "}'),
        *pair("e", 5, b"\xff", json=b'{"caption": "json"}'),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert captions(path, tmp_path) == ["json", "cap", None, None, "not UTF-8"]


def test_the_same_in_a_folder_and_in_a_tfrecord(tmp_path):
    make_folder(tmp_path / "in", 1)
    (tmp_path / "in" / "000000.txt").write_text("")
    (tmp_path / "in" / "000000.caption").write_text("cap")
    assert captions(tmp_path / "in", tmp_path) == ["cap"]
    record = {"jpg": picture(0), "txt": b"", "caption": b"cap"}
    write_tfrecord(tmp_path / "a.tfrecord", [record, {"jpg": picture(1), "txt": b""}])
    assert captions(tmp_path / "a.tfrecord", tmp_path) == ["cap", None]


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_text_files_of_several_lines_are_counted(layout, tmp_path):
    texts = ["one\ntwo\n", "one\r\n\r\ntwo", "one\n\n", "\n one", "one"]
    if layout == "tar":
        path = write_tar(tmp_path / "a.tar", [m for i, text in enumerate(texts) for m in pair(str(i), i, text)])
    else:
        make_folder(path := tmp_path / "in", 5)
        for i, text in enumerate(texts):
            (path / f"{i:06d}.txt").write_bytes(text.encode())
    note = "text files of several lines, each read as one caption; --captions all takes each line as a caption"
    assert read(path, tmp_path)[1] == {note: 2}
    assert read(path, tmp_path, ReaderOptions(captions="all"))[1] == {}


def test_the_note_about_lines_is_among_the_last(embed, tmp_path, capsys):
    make_folder(tmp_path / "in", 2)
    (tmp_path / "in" / "000000.txt").write_text("one\ntwo\n")
    embed(tmp_path / "in", output=tmp_path / "out")
    assert (
        "note: 1 text file of several lines, each read as one caption; --captions all takes each line as a caption"
        in capsys.readouterr().out
    )
    embed(tmp_path / "in", output=tmp_path / "all", flags=["--captions", "all"])
    assert [row["caption"] for row in rows_of(tmp_path / "all", "captions")] == ["one", "two", "picture number 1"]
