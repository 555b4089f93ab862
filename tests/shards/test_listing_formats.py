"""Listings as other programs write them: separators, compression, encodings, JSON arrays, paths of Windows."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import re
from pathlib import Path

import count_sources
import fsspec
import pyarrow as pa
import pytest
from conftest import picture
from forked import run
from reading import read

from clip_transforms.parts.manifest import read_run
from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.unit import ReaderOptions

FEWER = "rows of listings that have fewer fields than the header"
MERGED = "rows of listings whose quotes join lines that look like rows themselves"


@pytest.fixture
def listed(tmp_path):
    """Return a function that writes a listing beside three pictures and reads it."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(picture(i))

    def write_and_read(name, data, **options):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        rows, notes, errors = read(tmp_path / name, tmp_path, ReaderOptions(**options))
        assert not errors
        return rows, notes

    return write_and_read


def captions(found):
    rows, _ = found
    return [row["caption"] or (row["caption_reject"] and row["caption_reject"]["reason"]) for row in rows]


def pictures(found):
    rows, _ = found
    return [row["image"] and [picture(i) for i in range(3)].index(row["image"]) for row in rows]


# Quotes that fit by chance


def url_first(*texts):
    return "url\tcaption\n" + "".join(f"images/{i}.jpg\t{text}\n" for i, text in enumerate(texts))


CHANCE = {
    "opens in one row and closes in another": ['"the best', "a star", '5 x 7"'],
    "closes in the next row": ['"the best', '5 x 7"', "a star"],
    "opens and closes twice": ['"a', 'b"', '"c'],
    "inside": ['"Hello," she said', 'a sign: "stop"', "plain"],
    "whole captions": ['"a whole caption"', '""', '"x'],
    "a quote alone": ['"', "a star", '"'],
    "quotes around quotes": ['""Hello""', '"', '""'],
}


@pytest.mark.parametrize("name", CHANCE)
def test_quotes_of_a_tsv_that_fit_by_chance_swallow_no_row(name, listed):
    found = listed("l.tsv", url_first(*CHANCE[name]))
    assert captions(found) == CHANCE[name] and pictures(found) == [0, 1, 2] and found[1] == {}


def test_quotes_swallow_no_row_of_a_csv_with_tabs_or_of_a_tsv_whose_caption_comes_first(listed):
    assert captions(listed("l.csv", url_first('"a', "b", 'c"'))) == ['"a', "b", 'c"']
    found = listed("l.tsv", 'caption\turl\n"a\timages/0.jpg\nb\timages/1.jpg\n"c"\timages/2.jpg\n')
    assert captions(found) == ['"a', "b", '"c"']


def test_a_tsv_of_a_program_that_quotes_is_read_as_before(listed):
    text = 'url\tcaption\n\t"she said ""hi"""\nimages/1.jpg\t"two\nlines"\n"tab\there"\tb\n\t"c\rd"\n'
    found = listed("minimal.tsv", text)
    assert captions(found) == ['she said "hi"', "two\nlines", "b", "c\rd"] and found[1] == {}
    found = listed("all.tsv", '"url"\t"caption"\n""\t"a whole caption"\n"images/1.jpg"\t""\n')
    assert captions(found) == ["a whole caption", None]
    assert captions(listed("one.tsv", 'caption\n"two\nlines"\nb\n')) == ["two\nlines", "b"]


def test_a_csv_whose_quotes_join_lines_that_look_like_rows_is_counted(listed):
    text = 'url,caption\nimages/0.jpg,"the best\nimages/1.jpg,a star\nimages/2.jpg,5 x 7"\n'
    rows, notes = listed("l.csv", text)
    assert len(rows) == 1 and notes == {MERGED: 1}
    assert listed("l.tsv", 'url\tcaption\n\t"a\nb\n\tc\n\td"\n')[1] == {MERGED: 1}  # a short line among them
    for fine in ('url,caption\nimages/0.jpg,"two\nlines"\n', 'caption,url\n"two, three, four\n\nlines",images/0.jpg\n'):
        rows, notes = listed("l.csv", fine)
        assert len(rows) == 1 and notes == {}


# Back slashes before quotes

ESCAPED = {
    "as Spark writes": ('"he said \\"a red star\\", and left"', 'he said "a red star", and left'),
    "at the end": ('"five \\"inches\\""', 'five "inches"'),
    "alone": ('"5\\""', '5"'),
    "and a line end": ('"he said \\"a\nb\\""', 'he said "a\nb"'),
    "escaped back slash": ('"a \\"b\\" c\\\\"', 'a "b" c\\'),
    "no escape": ('"C:\\dir, x"', "C:\\dir, x"),
    "doubled quotes": ('"he said ""hi"", \\o/"', 'he said "hi", \\o/'),
    "stray quote": ('"a \\"b" c\\" d', "malformed row"),
}


@pytest.mark.parametrize("name", ESCAPED)
def test_quotes_after_back_slashes_are_text(name, listed):
    written, expected = ESCAPED[name]
    for place in (0, 1, 2):
        rows = [written if i == place else f"number {i}" for i in range(3)]
        found = listed("l.csv", "url,caption\n" + "".join(f"images/{i}.jpg,{text}\n" for i, text in enumerate(rows)))
        assert captions(found) == [expected if i == place else f"number {i}" for i in range(3)]
    twice = f"url,caption\nimages/0.jpg,{written}\nimages/1.jpg,{written}\n"
    assert captions(listed("l.csv", twice)) == [expected, expected]


def test_a_tsv_as_r_writes_it(listed):
    found = listed("l.tsv", '"url"\t"caption"\n"images/0.jpg"\t"he said \\"hi\\""\n"images/1.jpg"\t"b"\n')
    assert captions(found) == ['he said "hi"', "b"] and pictures(found) == [0, 1]


# Separators


SEPARATORS = {
    "tabs": ("l.csv", "filepath\ttitle\nimages/0.jpg\ta star, red\n", {}),
    "semicolons": ("l.csv", "image;caption\nimages/0.jpg;a star, red\n", {}),
    "semicolons and quotes": ("l.csv", '"image";"caption"\n"images/0.jpg";"a star, red"\n', {}),
    "bars": ("l.csv", "image|caption\nimages/0.jpg|a star, red\n", {}),
    "bars and spaces": ("l.csv", "image| number| caption\nimages/0.jpg| 0| a star, red\n", {}),
    "spaces after commas": ("l.csv", 'image, caption\nimages/0.jpg, "a star, red"\n', {}),
    "commas in a tsv": ("l.tsv", 'image,caption\nimages/0.jpg,"a star, red"\n', {}),
    "as spreadsheets say": ("l.csv", "sep=;\r\nimage;caption\r\nimages/0.jpg;a star, red\r\n", {}),
    "named columns": (
        "l.csv",
        "image_name| comment\nimages/0.jpg| a star, red\n",
        {"image_column": "image_name", "caption_column": "comment"},
    ),
    "a comma in another name": ("l.csv", "image;caption;number, of it\nimages/0.jpg;a star, red;1\n", {}),
    "separators at the end": ("l.csv", 'image,caption\nimages/0.jpg,"a star, red",,\n', {}),
    "separators in the header": ("l.csv", 'image,caption,,\nimages/0.jpg,"a star, red",,\n', {}),
    "upper case": ("L.CSV", 'IMAGE;TITLE\nimages/0.jpg;"a star, red"\n', {}),
}


@pytest.mark.parametrize("name", SEPARATORS)
def test_the_separator_is_found_in_the_header(name, listed):
    file, text, options = SEPARATORS[name]
    found = listed(file, text, **options)
    assert captions(found) == ["a star, red"] and pictures(found) == [0] and found[1] == {}


def test_a_csv_with_commas_stays_one_whatever_else_its_header_holds(listed):
    rows, _ = listed("l.csv", "caption,a;b|c\na star,1\n")
    assert rows[0]["caption"] == "a star" and json.loads(rows[0]["metadata"]) == {"a;b|c": "1"}
    rows, _ = listed("l.csv", "caption, note\na star, x\n")  # no name that we know has a space before it
    assert json.loads(rows[0]["metadata"]) == {" note": " x"}


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "image_name| comment_number| comment\na.jpg| 0| x\n",
            "image_name, comment_number, comment; separated by bars",
        ),
        ("a;b\n1;2\n", "a, b; separated by semicolons"),
        ("a\tb\n1\t2\n", "a, b; separated by tabs"),
        ("a,b\n1,2\n", "a, b; separated by commas"),
        ("a:b\n1:2\n", "a:b; separated by commas"),
    ],
)
def test_a_header_without_a_column_that_we_know_says_which_separator_was_found(text, shown, tmp_path):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(PlanError) as caught:
        take_inventory([str(tmp_path / "l.csv")], ReaderOptions())
    assert str(caught.value) == (
        f"{tmp_path}/l.csv has no column of URIs or of captions (columns: {shown}); name one with --image_column or "
        "--caption_column; a CSV's first line must name its columns"
    )


def test_a_row_with_more_fields_is_a_reject_and_the_next_row_is_read(listed):
    found = listed("l.csv", "url,caption\nimages/0.jpg,a,b\nimages/1.jpg,c\n")
    assert captions(found) == ["malformed row", "c"] and pictures(found) == [None, 1]


# Paths of Windows


def test_back_slashes_separate_folders_unless_a_file_has_them_in_its_name(listed, tmp_path):
    (tmp_path / "images\\1.jpg").write_bytes(picture(2))
    found = listed("l.csv", "image\nimages\\0.jpg\nimages\\1.jpg\n.\\images\\1.jpg\n")
    assert pictures(found) == [0, 2, 1]


@pytest.mark.parametrize("uri", ["..\\secret.jpg", "images\\..\\..\\secret.jpg"])
def test_back_slashes_lead_nowhere_that_slashes_do_not(uri, listed, tmp_path):
    (tmp_path.parent / "secret.jpg").write_bytes(picture(0))
    (row,), _ = listed("l.csv", f"image\n{uri}\n")
    assert row["image"] is None and row["image_reject"]["reason"] == "not allowed"


@pytest.mark.parametrize("uri", ["C:\\data\\0.jpg", "d:/data/0.jpg", "\\\\server\\data\\0.jpg"])
def test_a_path_on_a_drive_of_windows_says_so_before_the_run_and_in_the_reject(uri, listed, tmp_path):
    (row,), _ = listed("l.csv", f"image\n{uri}\n")
    sentence = f"{uri} is on a drive of Windows; make the paths relative to the listing"
    assert row["image_reject"] == {"reason": "not allowed", "message": sentence, "num_bytes": None}
    lines = take_inventory([str(tmp_path / "l.csv")], ReaderOptions()).detection
    assert lines[1] == f"warning: {tmp_path}/l.csv: the first images cannot be fetched: {sentence}"


def test_back_slashes_work_in_a_listing_on_another_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/windows/images/0.jpg": picture(0), "/windows/l.csv": b"image\nimages\\0.jpg\n"})
    try:
        rows, _, _ = read("memory://windows/l.csv", tmp_path)
        assert rows[0]["image"] == picture(0)
    finally:
        memory.rm("/windows", recursive=True)


# Compression and encodings


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
TEXTS = {
    "csv": "image,caption\nimages/0.jpg,a\nimages/1.jpg,b\n",
    "tsv": "image\tcaption\nimages/0.jpg\ta\nimages/1.jpg\tb\n",
    "jsonl": '{"image": "images/0.jpg", "caption": "a"}\n{"image": "images/1.jpg", "caption": "b"}\n',
    "json": '[{"image": "images/0.jpg", "caption": "a"}, {"image": "images/1.jpg", "caption": "b"}]',
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_compressed_listing_is_read_and_cut_as_without_compression(kind, compression, listed, tmp_path):
    found = listed(f"l.{kind}.{compression}", COMPRESSIONS[compression](TEXTS[kind].encode()))
    assert captions(found) == ["a", "b"] and pictures(found) == [0, 1]
    (compressed,) = take_inventory([str(tmp_path / f"l.{kind}.{compression}")], ReaderOptions()).units
    (tmp_path / f"l.{kind}").write_text(TEXTS[kind])
    (plain,) = take_inventory([str(tmp_path / f"l.{kind}")], ReaderOptions()).units
    assert compressed.stamp == plain.stamp


@pytest.mark.parametrize(
    "compression",
    [pytest.param(name, marks=pytest.mark.slow if name == "xz" else ()) for name in COMPRESSIONS],  # 5 s
)
def test_a_compressed_listing_that_was_cut_short_gives_its_rows_and_one_shard_error(compression, tmp_path):
    text = "caption,n\n" + "".join(f"number {i},{os.urandom(50).hex()}\n" for i in range(20_000))
    data = COMPRESSIONS[compression](text.encode())
    (tmp_path / f"l.csv.{compression}").write_bytes(data[: len(data) * 3 // 4])
    rows, _, errors = read(tmp_path / f"l.csv.{compression}", tmp_path, batch_size=1_000)
    assert [row["caption"] for row in rows] == [f"number {i}" for i in range(len(rows))] and 1_000 < len(rows) < 20_000
    assert [reason for reason, _ in errors] == ["unreadable"] and f"after row {len(rows) - 1:,}" in errors[0][1]


def test_gzip_in_several_members_is_one_listing(listed):
    data = gzip.compress(b"caption\na\n") + gzip.compress(b"b\n")
    assert captions(listed("l.csv.gz", data)) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_listing_with_a_byte_order_mark_is_read(encoding, kind, listed):
    data = TEXTS[kind].replace('"a"', '"ä €"').replace(",a\n", ',"ä €"\n').replace("\ta\n", "\tä €\n").encode(encoding)
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    assert captions(listed(f"l.{kind}", mark + data)) == ["ä €", "b"]


def test_a_byte_order_mark_before_a_quoted_header_belongs_to_no_name(listed):
    found = listed("l.csv", b'\xef\xbb\xbf"image","caption"\r\n"images/0.jpg","a"\r\n')
    assert captions(found) == ["a"] and pictures(found) == [0]


def test_utf16_that_ends_in_the_middle_of_a_character_is_damage(tmp_path):
    (tmp_path / "l.csv").write_bytes("caption\na\nb\n".encode("utf-16")[:-1])
    rows, _, errors = read(tmp_path / "l.csv", tmp_path)
    assert [row["caption"] for row in rows] == ["a"] and errors[0][0] == "unreadable"


def test_utf16_without_a_mark_is_refused_with_the_cure(tmp_path):
    (tmp_path / "l.csv").write_bytes("image,caption\na.jpg,b\n".encode("utf-16-le"))
    with pytest.raises(PlanError, match="looks like UTF-16 without a byte-order mark, or is no text; save it as UTF-8"):
        take_inventory([str(tmp_path / "l.csv")], ReaderOptions())


# JSON


ARRAYS = {
    "one line": ('[{"image": "images/0.jpg", "caption": "a"}, {"image": "images/1.jpg", "caption": "b"}]', ["a", "b"]),
    "pretty": (json.dumps([{"caption": "a", "n": {"x": [1, 2]}}, {"caption": "b"}], indent=2), ["a", "b"]),
    "brackets and quotes in texts": (json.dumps([{"caption": 'a ]}," \\'}, {"caption": "b"}]), ['a ]}," \\', "b"]),
    "not UTF-8": (b'[{"caption": "gr\xfcn"}, {"caption": "b"}]', ["not UTF-8", "b"]),
    "no objects between": (
        '[{"caption": "a"}, 7, "x, y", [1, 2], {"caption": "b"}]',
        ["a", *["malformed row"] * 3, "b"],
    ),
    "an element that is no JSON": (
        '[{"caption": "a"}, {"caption": }, {"caption": "b"}]\n',
        ["a", "malformed row", "b"],
    ),
    "byte-order mark": (b'\xef\xbb\xbf [\n{"caption": "a"}\n]\n', ["a"]),
    "none": ("[]", []),
}


@pytest.mark.parametrize("file", ["l.json", "l.jsonl", "l.ndjson"])
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_the_elements_of_an_array_are_rows(name, file, block, listed, monkeypatch):
    monkeypatch.setattr("clip_transforms.shards.lines.BLOCK", block)
    data, expected = ARRAYS[name]
    assert captions(listed(file, data)) == expected


DAMAGED_ARRAYS = {
    "cut short": '[{"caption": "a"}, {"caption": "b"}, {"capt',
    "without an end": '[{"caption": "a"}, {"caption": "b"}',
    "with something behind": '[{"caption": "a"}, {"caption": "b"}] {"caption": "c"}',
    "ended by a brace": '[{"caption": "a"}, {"caption": "b"}, }',
    "with a huge element": '[{"caption": "a"}, {"caption": "b"}, {"caption": "' + "x " * (5 << 20) + '"}]',
}


@pytest.mark.parametrize("name", DAMAGED_ARRAYS)
def test_a_damaged_array_gives_its_rows_and_one_shard_error(name, tmp_path):
    (tmp_path / "l.json").write_text(DAMAGED_ARRAYS[name])
    rows, _, errors = read(tmp_path / "l.json", tmp_path)
    assert [row["caption"] for row in rows] in (["a", "b"], ["a"])
    assert [reason for reason, _ in errors] == ["unreadable"] and "after row" in errors[0][1]


def test_json_lines_may_be_called_json(listed):
    assert captions(listed("l.json", '{"caption": "a"}\n{"caption": "b"}\n')) == ["a", "b"]
    assert captions(listed("l.json", '{"caption": "a"}')) == ["a"]


COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(2)],
    "annotations": [{"image_id": i, "caption": f"caption {j} of {i}"} for j in range(2) for i in range(2)],
}
IS_COCO = "is in COCO's format, which keeps pictures and captions apart"
REFUSED = {
    "COCO": (COCO, IS_COCO),
    "COCO, indented": (json.dumps({"info": {}, **COCO}, indent=1), IS_COCO),
    "COCO without pictures": ({"annotations": []}, IS_COCO),
    "one object": (
        json.dumps({"a.jpg": "a cat", "b.jpg": "a dog"}, indent=1),
        "is no list of rows; write it as an array",
    ),
    "a list in a field": ({"data": [{"image": "a.jpg"}]}, "has no column of URIs or of captions (columns: data)"),
    "texts": (["a.jpg", "b.jpg"], "is no list of rows"),
    "a number": (7, "is no list of rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_json_that_is_no_list_of_rows_is_refused_by_name(name, tmp_path):
    data, sentence = REFUSED[name]
    (tmp_path / "l.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(PlanError) as caught:
        take_inventory([str(tmp_path / "l.json")], ReaderOptions())
    assert f"{tmp_path}/l.json {sentence}" in str(caught.value)


def test_the_lines_of_the_docs_make_a_listing_of_coco(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "usage.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "annotations" in block)
    (tmp_path / "images").mkdir()
    for i in range(2):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(picture(i))
    (tmp_path / "captions_val2017.json").write_text(json.dumps(COCO))
    assert run("-c", block.replace("val2017/", "images/"), cwd=tmp_path, timeout=60).returncode == 0
    rows, _, errors = read(tmp_path / "coco.jsonl", tmp_path, ReaderOptions(caption_column="caption[0]"))
    assert not errors and [row["image"] for row in rows] == [picture(0), picture(1)]
    assert [row["caption"] for row in rows] == ["caption 0 of 0", "caption 0 of 1"]


def llava(rows):
    return [
        {
            "image": f"images/{i}.jpg",
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": text}],
        }
        for i, text in enumerate(rows)
    ]


def test_llavas_json_is_refused_by_name_and_the_flag_of_the_message_takes_its_captions(listed, tmp_path):
    data = json.dumps(llava(["a star", "a circle"]))
    (tmp_path / "l.json").write_text(data)
    with pytest.raises(PlanError, match="is in LLaVA's format: its captions are answers in conversations") as caught:
        take_inventory([str(tmp_path / "l.json")], ReaderOptions())
    column = re.search(r"--caption_column '(.*)'", str(caught.value))[1]
    found = listed("l.json", data, caption_column=column)
    assert captions(found) == ["a star", "a circle"] and pictures(found) == [0, 1]


def test_conversations_in_json_lines_are_warned_of(listed, tmp_path):
    found = listed("l.jsonl", "\n".join(map(json.dumps, llava(["a star"]))))
    assert captions(found) == [None] and pictures(found) == [0]
    lines = take_inventory([str(tmp_path / "l.jsonl")], ReaderOptions()).detection
    assert lines[1].startswith("warning:") and "--caption_column 'conversations[1].value'" in lines[1]


def test_json_is_a_listing_if_it_is_named_or_alone_and_a_sidecar_beside_pictures(listed, tmp_path):
    (tmp_path / "images" / "0.json").write_text('{"caption": "x", "n": 1}')
    assert take_inventory([str(tmp_path / "images")], ReaderOptions()).formats == {"folder"}
    (tmp_path / "only").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "only" / name).write_text('[{"caption": "a"}]')
    for source in ("only", "only/*.json", "only/a.json"):
        assert take_inventory([str(tmp_path / source)], ReaderOptions()).formats == {"listing"}
    found = take_inventory([str(tmp_path / "only" / name) for name in ("a.json", "b.json")], ReaderOptions())
    assert [unit.format for unit in found.units] == ["listing"] * 2


@pytest.mark.parametrize("path, expected", [("meta.texts[1]", "two"), ("meta.texts[9]", None), ("a.b[0]", "exact")])
def test_a_caption_may_lie_inside_the_json_of_a_row(path, expected, listed):
    row = {"image": "images/0.jpg", "meta": {"texts": ["one", "two"]}, "a.b[0]": "exact"}
    assert captions(listed("l.jsonl", json.dumps(row), caption_column=path)) == [expected]


COUNTED = {
    "l.tsv": url_first('"the best', "a star", '5 x 7"'),
    "minimal.tsv": 'url\tcaption\n\t"she said ""hi"""\nimages/1.jpg\t"two\nlines"\n',
    "tabs.csv": "filepath\ttitle\nimages/0.jpg\ta, b\n",
    "semicolons.csv": "image;caption\nimages/0.jpg;a, b\nimages/1.jpg;\n;c\n",
    "bars.csv": "image| caption\nimages/0.jpg| a, b\n",
    "returns.csv": 'image,caption\rimages/0.jpg,"a, b"\r,c\r',
    "spark.csv": 'image,caption\nimages/0.jpg,"he said \\"a\\", b"\n',
    "windows.csv": "image,caption\nimages\\0.jpg,a\n",
    "l.csv.gz": gzip.compress(b"image,caption\nimages/0.jpg,a\n"),
    "l.jsonl.bz2": bz2.compress(b'{"image": "images/0.jpg"}\n{"caption": "a"}\n'),
    "utf16.csv": "image,caption\nimages/0.jpg,ä\n".encode("utf-16"),
    "array.jsonl": '[{"image": "images/0.jpg"}, {"caption": "a"}]',
    "array.json": '[{"image": "images/0.jpg"}, {"caption": "a"}]',
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_independent_count_agrees(name, listed, tmp_path):
    rows, _ = listed(name, COUNTED[name])
    counted = count_sources.count([str(tmp_path / name)])
    assert counted["samples"] == len(rows)
    for modality in ("image", "caption"):
        offered = sum(row[modality] is not None or row[f"{modality}_reject"] is not None for row in rows)
        assert counted[modality] == offered


def test_a_run_over_all_of_them_balances_with_the_independent_count(listed, embed, tmp_path):
    for name, data in COUNTED.items():
        listed(name, data)
    embed(*(tmp_path / name for name in COUNTED), output=tmp_path / "out")
    inputs = [str(tmp_path / name) for name in COUNTED]
    assert count_sources.compare(read_run(str(tmp_path / "out")), inputs) == []


def test_a_listing_without_captions_names_the_fields_that_it_has(listed, tmp_path):
    rows, notes = listed("l.csv", "image,alt,n\nimages/0.jpg,a star,1\nimages/1.jpg,,2\n")
    assert len(rows) == 2 and notes == {"field.alt": 1, "field.n": 2}
    assert listed("l.csv", "caption,n\na,1\n")[1] == {}
    assert listed("l.csv", "image,caption,n\nimages/0.jpg,,1\n")[1] == {}


def test_json_that_no_picture_has_is_named_and_read_as_a_listing_if_that_is_asked_for(listed, tmp_path):
    (tmp_path / "images" / "0.json").write_text('{"n": 1}')
    (tmp_path / "images" / "captions.json").write_text('[{"image": "0.jpg", "caption": "a star"}]')
    line, note = take_inventory([str(tmp_path / "images")], ReaderOptions()).detection
    assert line.endswith(": a folder of 3 pictures; not read: 1 JSON file without a picture")
    assert note.startswith("note: 1 listing (captions.json) lies beside the pictures")
    rows, _, _ = read(tmp_path / "images", tmp_path, ReaderOptions(input_format="listing"))
    assert [(row["image"], row["caption"]) for row in rows] == [(picture(0), "a star")]


@pytest.mark.parametrize(
    "image, column", [({"bytes": None, "path": "images/0.jpg"}, "image.path"), (["images/0.jpg"], "image[0]")]
)
def test_a_uri_inside_json_is_named_with_the_flag_that_takes_it(image, column, listed):
    row = json.dumps({"image": image, "caption": "a"})
    (found,), _ = listed("l.jsonl", row)
    assert found["image_reject"]["reason"] == "not text"
    assert f"--image_column '{column}' takes a text inside it" in found["image_reject"]["message"]
    assert pictures(listed("l.jsonl", row, image_column=column)) == [0]
