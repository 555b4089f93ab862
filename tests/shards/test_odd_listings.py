"""Malformed rows and truncated listings: each bad row costs itself and no other row."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read

from clip_transforms.shards import records
from clip_transforms.shards.inventory import PlanError

ROWS = [("a.jpg", "a cat"), ("sub/b.jpg", "a dog, red"), ("", 'she said "hi"'), ("c.jpg", None), (None, "two\nlines")]


ODD = {
    "byte-order mark": (b"\xef\xbb\xbfcaption,n\na cat,1\n", ["a cat"]),
    "crlf": (b"caption,n\r\na cat,1\r\na dog,2\r\n", ["a cat", "a dog"]),
    "no last newline": (b"caption,n\na cat,1\na dog,2", ["a cat", "a dog"]),
    "blank lines": (b"caption,n\n\na cat,1\n\r\n\na dog,2\n", ["a cat", "a dog"]),
    "quoted newline": (b'caption,n\n"a\r\nb\n\nc",1\nd,2\n', ["a\r\nb\n\nc", "d"]),
    "nul": (b"caption,n\na\0b,1\nc,2\n", ["a\0b", "c"]),
    "lone carriage return": (b"caption,n\na\rb,1\nc,2\n", ["a\rb", "c"]),
    "too few fields": (b"n,caption\n1\n2,b\n", [None, "b"]),
    "too many fields": (b"caption,n\na cat, red,1\nb,2\n", ["malformed row", "b"]),
    "stray quote": (b'caption,n\n"a cat,1\nb,2\nc,3\n', ["malformed row", "b", "c"]),
    "stray quote, closed later": (b'caption,n\n"a cat,1\n"b",2\nc,3\n', ["malformed row", "b", "c"]),
    "text behind a quote": (b'caption,n\n"a" cat,1\nb,2\n', ["malformed row", "b"]),
    "inches": (b'caption,n\n5" pipe,1\nb,2\n', ['5" pipe', "b"]),
    "not UTF-8": (b"caption,n\ngr\xfcn,1\nb,2\n", ["not UTF-8", "b"]),
    "not UTF-8 elsewhere": (b"n,caption\ngr\xfcn,a\n2,b\n", ["a", "b"]),
    "header alone": (b"caption,n\n", []),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_csv_costs_no_row(name, tmp_path):
    data, expected = ODD[name]
    (tmp_path / "l.csv").write_bytes(data)
    rows, notes, errors = read(tmp_path / "l.csv", tmp_path)
    found = [row["caption"] or (row["caption_reject"] and row["caption_reject"]["reason"]) for row in rows]
    assert found == expected and not errors
    assert all(row["image_reject"] is None for row in rows)  # it has no column of URIs, so none is offered
    few = {"rows of listings that have fewer fields than the header": 1}
    assert notes == (few if name == "too few fields" else {})


def test_a_tsv_of_a_program_that_does_not_quote(tmp_path):
    (tmp_path / "l.tsv").write_text('caption\tn\n"Hello" she said\t1\n"open\t2\nplain\t3\n"quoted\tone"\t4\n')
    rows, _, _ = read(tmp_path / "l.tsv", tmp_path)
    assert [row["caption"] for row in rows] == ['"Hello" she said', '"open', "plain", "quoted\tone"]


def test_a_row_of_empty_fields_is_a_row_in_a_tsv_too(tmp_path):
    (tmp_path / "l.csv").write_text("caption,n\n,\na cat,1\n \n")
    (tmp_path / "l.tsv").write_text("caption\tn\n\t\na cat\t1\n \n")
    for name in ("l.csv", "l.tsv"):
        rows, _, _ = read(tmp_path / name, tmp_path)
        assert [(row["row"], row["caption"]) for row in rows] == [(0, None), (1, "a cat")]


CARRIAGE_RETURNS = {
    "l.csv": b"caption,n\ra cat,1\ra dog,2\r",
    "l.tsv": b"caption\tn\ra cat\t1\ra dog\t2",
    "l.jsonl": b'{"caption": "a cat"}\r{"caption": "a dog"}\r',
    "l.ndjson": b'\xef\xbb\xbf{"caption": "a cat"}\r{"caption": "a dog"}\r',
    "long.csv": b"caption,n\r" + b"a cat,1\r" * 20_000,
    "header.csv": b"caption,n\r",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "long.csv" else ()) for name in CARRIAGE_RETURNS],  # 6 s
)
def test_lines_that_end_with_carriage_returns_alone_are_read_like_others(name, tmp_path):
    data = CARRIAGE_RETURNS[name]
    found = []
    for end in (b"\r", b"\n", b"\r\n"):
        (tmp_path / name).write_bytes(data.replace(b"\r", end))
        rows, notes, errors = read(tmp_path / name, tmp_path, batch_size=10_000)
        assert not errors and not notes
        found.append([row["caption"] for row in rows])
    assert found[0] == found[1] == found[2] == ["a cat"] * data.count(b"a cat") + ["a dog"] * data.count(b"a dog")


def test_two_columns_of_one_name_are_refused_as_in_parquet(tmp_path):
    (tmp_path / "l.csv").write_text("caption,n,caption\na,1,b\n")
    with pytest.raises(PlanError, match="l.csv cannot be read: two of its columns are called 'caption'; mend it"):
        read(tmp_path / "l.csv", tmp_path)


JSONL = {
    "no JSON": (b'{"caption": "a"}\n{"caption": \n{"caption": "b"}\n', ["a", "malformed row", "b"]),
    "no object": (b'["a"]\n{"caption": "b"}\n7\n', ["malformed row", "b", "malformed row"]),
    "deep": (b'{"caption": "a"}\n' + b"[" * 100_000 + b'\n{"caption": "b"}', ["a", "malformed row", "b"]),
    "deep in a field": (
        b'{"caption": "a", "x": ' + b"[" * 900 + b"]" * 900 + b'}\n{"caption": "b"}',
        None,  # as deep as this Python goes, so either may come of it
    ),
    "many digits": (b'{"caption": "a", "n": ' + b"1" * 5000 + b'}\n{"caption": "b"}', ["malformed row", "b"]),
    "number": (b'{"caption": 7}\n{"caption": "b"}', ["not text", "b"]),
    "not UTF-8": (b'{"caption": "gr\xfcn"}\n{"caption": "b"}', ["not UTF-8", "b"]),
    "half a surrogate pair": (b'{"caption": "\\ud83d"}\n{"caption": "b"}', ["not UTF-8", "b"]),
    "byte-order mark": (b'\xef\xbb\xbf{"caption": "a"}\n\n{"caption": "b"}\r\n', ["a", "b"]),
    "nan": (b'{"caption": "a", "n": NaN}\n', ["a"]),
}


@pytest.mark.parametrize("name", JSONL)
def test_an_odd_jsonl_costs_no_row(name, tmp_path):
    data, expected = JSONL[name]
    (tmp_path / "l.jsonl").write_bytes(data)
    rows, _, errors = read(tmp_path / "l.jsonl", tmp_path)
    found = [row["caption"] or row["caption_reject"]["reason"] for row in rows]
    assert not errors and (found == expected or (expected is None and found[1] == "b"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_of_fifty_megabytes_is_one_reject_and_takes_little_memory(kind, tmp_path):
    path = tmp_path / f"l.{kind}"
    with open(path, "wb") as file:
        file.write(b"caption\na\n" if kind == "csv" else b'{"caption": "a"}\n')
        file.write(b"x" * (50 << 20) + (b"\nb\n" if kind == "csv" else b'\n{"caption": "b"}\n'))
    tracemalloc.start()
    try:
        rows, _, _ = read(path, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["caption"] for row in rows] == ["a", None, "b"] and peak < 35 << 20
    assert rows[1]["caption_reject"]["reason"] == "malformed row"
    assert "more than 1,048,576 bytes" in rows[1]["caption_reject"]["message"]


def test_a_uri_that_is_not_text_and_a_missing_file_are_rejects(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"uri": 7}\n{"uri": "gone.jpg"}\n{"uri": "   "}\n{"uri": "."}\n')
    rows, _, _ = read(tmp_path / "l.jsonl", tmp_path)
    reasons = [row["image_reject"] and row["image_reject"]["reason"] for row in rows]
    assert reasons == ["not text", "not fetched", None, "not allowed"]
    assert "FileNotFoundError" in rows[1]["image_reject"]["message"]


@pytest.mark.parametrize("damage", ["page", "storage"])
def test_a_listing_that_is_damaged_gives_its_rows_and_one_shard_error(damage, tmp_path, monkeypatch):
    if damage == "page":
        path = tmp_path / "l.parquet"
        pq.write_table(pa.table({"caption": [f"c{i}" for i in range(6)]}), path, row_group_size=2, compression="none")
        data = bytearray(path.read_bytes())
        place = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
        data[place : place + 8] = b"\xff" * 8
        path.write_bytes(data)
        expected = ["c0", "c1", "c4", "c5"]
    else:
        path = tmp_path / "l.csv"
        path.write_text("caption\none\ntwo\nthree\nfour\n")
        original = records.split_lines

        def failing(*args):
            for place, line in enumerate(original(*args)):
                if place == 3:
                    raise TimeoutError("the storage does not answer")
                yield line

        monkeypatch.setattr(records, "split_lines", failing)
        expected = ["one", "two"]
    rows, _, errors = read(path, tmp_path)
    assert [row["caption"] for row in rows] == expected
    assert len(errors) == 1 and errors[0][0] == "unreadable"
    assert ("rows 2 to 3" if damage == "page" else "does not answer") in errors[0][1]


def test_a_flipped_bit_in_a_listing_with_checksums_is_found(tmp_path):
    path = tmp_path / "l.parquet"
    table = pa.table({"caption": ["a cat", "a dog"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    data = bytearray(path.read_bytes())
    data[data.index(b"a dog")] ^= 1
    path.write_bytes(data)
    rows, _, errors = read(path, tmp_path)
    assert rows == [] and errors[0][0] == "unreadable" and "crc" in errors[0][1].lower()
