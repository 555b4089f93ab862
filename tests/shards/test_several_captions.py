"""With `--captions all`, every caption that a source offers for a sample is read, in every layout."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tfrecords
from conftest import picture, write_tar
from reading import read

from clip_transforms.shards import all_captions
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions
from schemas.samples import ALL_CAPTIONS, NUM_CAPTIONS

ALL = ReaderOptions(captions="all")
LINES = {
    "five": (b"red\ngreen\nblue\nwhite\nblack\n", ["red", "green", "blue", "white", "black"]),
    "one": (b"red", ["red"]),
    "none": (b" \n\n", []),
    "empty lines": (b"\n red \n\n \t\ngreen\n\n", ["red", "green"]),
    "Windows": (b"\xef\xbb\xbfred\r\ngreen\r\n", ["red", "green"]),
    "one bad": (b"red\ngr\xfcn\nblue", ["red", "not UTF-8", "blue"]),
    "first bad": (b"gr\xfcn\nblue", ["not UTF-8", "blue"]),
    "one too large": (b"red\n" + b"x" * 61 + b"\nblue", ["red", "caption too large", "blue"]),
}


def short(row):
    """Return the captions of a row, or the reasons of their rejects, after a look at the row's own caption."""
    entries = row[ALL_CAPTIONS] or []
    assert (row[NUM_CAPTIONS] or 0) == len(entries)
    first = entries[0] if entries else {"caption": None, "reject": None}
    assert (row["caption"], row["caption_reject"]) == (first["caption"], first["reject"])
    return [entry["caption"] or entry["reject"]["reason"] for entry in entries]


@pytest.mark.parametrize("data, expected", LINES.values(), ids=LINES)
@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_each_line_of_a_text_file_is_a_caption(layout, data, expected, tmp_path):
    if layout == "tar":
        path = write_tar(tmp_path / "a.tar", [("0.jpg", b"1"), ("0.txt", data), ("1.jpg", b"2")])
    else:
        path = tmp_path / "photos"
        path.mkdir()
        (path / "0.jpg").write_bytes(b"1")
        (path / "0.caption").write_bytes(data)
        (path / "1.jpg").write_bytes(b"2")
    rows, notes, errors = read(path, tmp_path, ReaderOptions(captions="all", max_caption_bytes=60))
    assert ([short(row) for row in rows], notes, errors) == ([expected, []], {}, [])


def test_without_the_flag_a_text_file_is_one_caption(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"1"), ("0.txt", b"red\ngreen\n")])
    ((row,), _, _) = read(path, tmp_path)
    assert row["caption"] == "red\ngreen" and ALL_CAPTIONS not in row


LISTS = {
    "five": (["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"]),
    "one": (["a"], ["a"]),
    "empty": ([], []),
    "null": (None, []),
    "nulls and blanks": ([None, " ", "a", "", "b"], ["a", "b"]),
    "large": (["a", "x" * 61, "b"], ["a", "caption too large", "b"]),
}
MIXED = {
    "text": ("one\ntext", ["one\ntext"]),
    "number": (7, ["not text"]),
    "bad ones": (["a", 7, {"b": 1}, ["c"], "d"], ["a", "not text", "not text", "not text", "d"]),
    "half a pair": (["a", "\ud800"], ["a", "not UTF-8"]),
    "first bad": ([7, "a"], ["not text", "a"]),
}


@pytest.mark.parametrize("value, expected", (LISTS | MIXED).values(), ids=LISTS | MIXED)
@pytest.mark.parametrize("layout", ["json", "jsonl"])
def test_each_text_of_a_json_list_is_a_caption(layout, value, expected, tmp_path):
    if layout == "json":
        members = [("0.jpg", b"1"), ("0.json", json.dumps({"caption": value}).encode()), ("1.jpg", b"2")]
        path = write_tar(tmp_path / "a.tar", members)
    else:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps({"caption": value}) + "\n" + '{"caption": null}\n')
    rows, _, _ = read(path, tmp_path, ReaderOptions(captions="all", max_caption_bytes=60))
    assert [short(row) for row in rows] == [expected, []]


@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list], ids=["list", "large list"])
@pytest.mark.parametrize("images", [True, False], ids=["with images", "listing"])
@pytest.mark.parametrize("value, expected", LISTS.values(), ids=LISTS)
def test_each_text_of_a_list_column_is_a_caption(value, expected, images, list_type, tmp_path):
    columns = {"caption": pa.array([value, None], list_type(pa.string()))}
    if images:
        columns["image"] = pa.array([b"1", None])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, _, _ = read(tmp_path / "a.parquet", tmp_path, ReaderOptions(captions="all", max_caption_bytes=60))
    assert [short(row) for row in rows] == [expected, []]


@pytest.mark.parametrize("images", [True, False], ids=["with images", "listing"])
def test_a_column_of_lists_of_one_length_gives_all_of_them(images, tmp_path):
    columns = {"caption": pa.array([["a", "b"], ["c", None]], pa.list_(pa.string(), 2))}
    if images:
        columns["image"] = pa.array([b"1", None])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, _, _ = read(tmp_path / "a.parquet", tmp_path, ALL)
    assert [short(row) for row in rows] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("images", [True, False], ids=["with images", "listing"])
def test_a_text_that_is_not_utf_8_costs_a_list_column_no_other_text(images, tmp_path):
    texts = pa.array([b"a", b"gr\xfcn", b"c", b"d"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    columns = {"caption": pa.ListArray.from_arrays(pa.array([0, 3, 4], pa.int32()), texts)}
    if images:
        columns["image"] = pa.array([b"1", b"2"])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, _, _ = read(tmp_path / "a.parquet", tmp_path, ALL)
    assert [short(row) for row in rows] == [["a", "not UTF-8", "c"], ["d"]]


def test_a_text_column_gives_one_caption_a_row_and_a_failed_download_none(tmp_path):
    columns = {"jpg": [b"1", None, None], "caption": ["a\nb", "c", "d"], "status": ["success", "failed_to_resize", "x"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, _, _ = read(tmp_path / "a.parquet", tmp_path, ALL)
    assert [short(row) for row in rows] == [["a\nb"], [], ["d"]]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([b"red", b"green"], ["red", "green"]),
        ([b"red"], ["red"]),
        ([b"two\nlines"], ["two\nlines"]),
        ([b"red", b" ", b"gr\xfcn", b"blue"], ["red", "not UTF-8", "blue"]),
        ([b"gr\xfcn"], ["not UTF-8"]),
        ([], []),
    ],
    ids=["two", "one", "lines", "one bad", "only bad", "none"],
)
def test_each_value_of_a_tfrecords_feature_is_a_caption(values, expected, tmp_path):
    samples = [{"jpg": b"1", "caption": values}, {"jpg": b"2"}]
    rows, _, _ = read(tfrecords.write_tfrecord(tmp_path / "a.tfrecord", samples), tmp_path, ALL)
    assert [short(row) for row in rows] == [expected, []]


def test_a_list_in_a_list_is_no_caption_and_its_reject_names_no_cure_that_was_given(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.json", b'{"caption": ["a", ["b"], {"raw": "c"}]}')])
    ((row,), _, _) = read(path, tmp_path, ALL)
    said = ['the caption is ["b"], but it must be a text', 'the caption is {"raw": "c"}, but it must be a text']
    assert [entry["reject"]["message"] for entry in row[ALL_CAPTIONS][1:]] == said


def test_an_index_picks_one_also_with_the_flag(tmp_path):
    pq.write_table(pa.table({"image": [b"1", b"2"], "captions": [["a", "b"], ["c"]]}), tmp_path / "a.parquet")
    options = ReaderOptions(captions="all", caption_column="captions[1]")
    rows, _, _ = read(tmp_path / "a.parquet", tmp_path, options)
    assert [short(row) for row in rows] == [["b"], []]


def test_each_row_of_a_csv_is_a_sample_of_its_own(tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\n0.jpg,red .\n0.jpg,green .\n")
    (tmp_path / "0.jpg").write_bytes(picture(0))
    rows, _, _ = read(tmp_path / "captions.csv", tmp_path, ALL)
    assert [(row["image"], short(row)) for row in rows] == [(picture(0), ["red ."]), (picture(0), ["green ."])]


def test_what_a_reader_rejects_as_a_whole_is_one_caption(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"caption": "a"}\n{"caption": \n')
    rows, _, _ = read(tmp_path / "a.jsonl", tmp_path, ALL)
    assert [short(row) for row in rows] == [["a"], ["malformed row"]]


@pytest.mark.parametrize("layout", ["tar", "folder"])
@pytest.mark.parametrize("size, expected", [(64 * 60, 64), (64 * 60 + 1, 1)], ids=["at the limit", "over it"])
def test_a_text_file_has_a_limit_of_its_own(size, expected, layout, tmp_path):
    data = ((b"x" * 59 + b"\n") * 65)[:size]
    if layout == "tar":
        path = write_tar(tmp_path / "a.tar", [("0.txt", data)])
    else:
        path = tmp_path / "photos"
        path.mkdir()
        (path / "0.jpg").write_bytes(b"1")
        (path / "0.txt").write_bytes(data)
    ((row,), _, _) = read(path, tmp_path, ReaderOptions(captions="all", max_caption_bytes=60))
    assert len(short(row)) == expected
    if expected == 1:
        reject = row["caption_reject"]
        said = "but a file of captions has at most 64 times --max_caption_bytes, 3,840"
        assert reject["reason"] == "caption too large" and reject["message"].endswith(said)
        ((row,), _, _) = read(path, tmp_path, ReaderOptions(captions="all", max_caption_bytes=61))
        assert len(short(row)) == 65, "the cure cures"


def test_captions_beyond_the_most_of_a_sample_are_counted_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(all_captions, "MAX_CAPTIONS", 3)
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"a\nb\n\nc\nd\n\ne")])
    ((row,), _, _) = read(path, tmp_path, ALL)
    assert [entry["caption"] for entry in row[ALL_CAPTIONS]] == ["a", "b", "c"] and row[NUM_CAPTIONS] == 5


@pytest.mark.parametrize("layout", ["tar", "parquet"])
def test_a_batch_ends_early_at_many_captions(layout, tmp_path, monkeypatch):
    lists = [["a"] * 3, ["b"] * 4, None, ["c"] * 2, ["d"] * 9, ["e"]]
    if layout == "tar":
        members = [(f"{i}.json", json.dumps({"caption": texts}).encode()) for i, texts in enumerate(lists)]
        path = write_tar(tmp_path / "a.tar", members)
    else:
        pq.write_table(pa.table({"image": [b"1"] * 6, "caption": lists}), path := tmp_path / "a.parquet")
    for module in ("all_captions", "batches"):
        monkeypatch.setattr(f"clip_transforms.shards.{module}.MAX_BATCH_CAPTIONS", 6)
    sizes, original = [], pa.RecordBatch.from_arrays

    def note(arrays, **more):
        batch = original(arrays, **more)
        sizes.append(batch.num_rows)
        return batch

    class Noted(pa.RecordBatch):
        from_arrays = staticmethod(note)

    monkeypatch.setattr(f"clip_transforms.shards.{'batches' if layout == 'tar' else 'parquet'}.pa.RecordBatch", Noted)
    rows, _, _ = read(path, tmp_path, ALL, batch_size=100)
    assert [short(row) for row in rows] == [texts or [] for texts in lists] and [row["row"] for row in rows] == [
        *range(6)
    ]
    assert sizes == [2, 3, 1]


@pytest.mark.parametrize("images", [True, False], ids=["with images", "listing"])
def test_without_the_flag_a_list_column_is_refused_with_two_cures(images, tmp_path):
    columns = {"caption": [["a", "b"]], "image": [picture(0)]}
    pq.write_table(pa.table(columns if images else {"caption": [["a", "b"]]}), tmp_path / "a.parquet")
    said = (
        "the column caption lists several captions a row; choose one with --caption_column 'caption[0]', or take all "
        "of them with --captions all"
    )
    with pytest.raises(PlanError, match=re.escape(said)):
        take_inventory([str(tmp_path / "a.parquet")], ReaderOptions())
    for cure in (ALL, ReaderOptions(caption_column="caption[0]")):
        ((row,), _, _) = read(tmp_path / "a.parquet", tmp_path, cure)
        assert row["caption"] == "a"


def test_without_the_flag_a_json_list_is_a_reject_that_names_the_flag(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.json", b'{"caption": ["a", "b"]}')])
    ((row,), _, _) = read(path, tmp_path)
    said = (
        'the caption is ["a", "b"], but it must be a text; --captions all takes each text of a list, and '
        "--caption_column 'caption[0]' takes one"
    )
    assert (row["caption_reject"]["reason"], row["caption_reject"]["message"]) == ("not text", said)


def test_another_value_of_the_flag_is_refused():
    with pytest.raises(ValueError, match="--captions is 'five', but it must be first or all"):
        ReaderOptions(captions="five")
