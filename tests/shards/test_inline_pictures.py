"""Listings that hold their pictures themselves, as `data:` URIs or as base64."""

import base64
import csv
import io
import json
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, rows_of
from PIL import Image
from reading import read

from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.unit import ReaderOptions

# Data that no message may repeat begins like this.
LEAK = base64.b64encode(picture(0)).decode()[:16]


def encoded(data):
    return base64.b64encode(data).decode()


def saved(name):
    file = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(file, name)
    return file.getvalue()


def write(path, rows):
    """Write (image, caption) pairs as the extension says."""
    kind = path.name.partition(".")[2]
    names = ("image", "caption")
    if kind == "parquet":
        pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows([names, *rows])
    else:
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        path.write_text(json.dumps(objects) if kind == "json" else "\n".join(map(json.dumps, objects)))
    return path


KINDS = ["csv", "tsv", "jsonl", "json", "parquet"]
FORMS = {
    "data URI": lambda data: f"data:image/jpeg;base64,{encoded(data)}",
    "data URI in capitals": lambda data: f"DATA:IMAGE/JPEG;BASE64,{encoded(data)}",
    "data URI with a parameter": lambda data: f"data:image/jpeg;charset=utf-8;base64,{encoded(data)}",
    "data URI of another type": lambda data: f"data:application/octet-stream;base64,{encoded(data)}",
    "data URI without a type": lambda data: f"data:;base64,{encoded(data)}",
    "data URI, quoted": lambda data: f"data:image/jpeg;base64,{quote(encoded(data), safe='')}",
    "data URI without base64": lambda data: f"data:image/jpeg,{quote(data, safe='')}",
    "base64": encoded,
    "url-safe base64": lambda data: base64.urlsafe_b64encode(data).decode(),
    "base64 without padding": lambda data: encoded(data).rstrip("="),
    "base64 in lines": lambda data: base64.encodebytes(data).decode(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_the_listing_is_an_image_and_not_repeated_in_metadata(form, kind, tmp_path):
    path = write(tmp_path / f"l.{kind}", [(FORMS[form](picture(i)), f"number {i}") for i in range(3)])
    rows, notes, errors = read(path, tmp_path)
    assert not errors and not notes
    assert [row["image"] for row in rows] == [picture(i) for i in range(3)]
    assert [row["caption"] for row in rows] == ["number 0", "number 1", "number 2"]
    assert [row["metadata"] for row in rows] == [None] * 3 and LEAK not in str([row["image:uri"] for row in rows])


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_every_format_is_known_in_base64(name, tmp_path):
    data = saved(name)
    rows, _, _ = read(write(tmp_path / "l.csv", [(encoded(data), "a")]), tmp_path)
    assert rows[0]["image"] == data


@pytest.mark.parametrize("uri", ["R0lGODlh.gif", "9j/4AAQSkZJRg.jpg", "iVBORw0KGgo", "a" * 43, "A" * 64])
def test_a_path_that_looks_like_base64_is_a_path(uri, tmp_path):
    (tmp_path / uri).parent.mkdir(exist_ok=True)
    (tmp_path / uri).write_bytes(picture(1))
    rows, _, _ = read(write(tmp_path / "l.csv", [(uri, "a")]), tmp_path)
    assert rows[0]["image"] == picture(1) and json.loads(rows[0]["metadata"]) == {"image": uri}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_be_as_long_as_its_picture(kind, tmp_path):
    large = picture(0) + bytes(3 << 20)
    texts = [encoded(picture(1)), encoded(large), encoded(picture(2))]
    rows, notes, errors = read(write(tmp_path / f"l.{kind}", [(text, "a") for text in texts]), tmp_path)
    assert [row["image"] for row in rows] == [picture(1), large, picture(2)] and not notes and not errors


@pytest.mark.parametrize("form", ["data URI", "base64", "data URI without base64"])
def test_a_picture_over_the_limit_is_a_reject_that_does_not_repeat_it(form, tmp_path):
    size = len(picture(0))
    path = write(tmp_path / "l.jsonl", [(FORMS[form](picture(0)), "a"), (FORMS[form](picture(0) + b"12345"), "b")])
    rows, _, _ = read(path, tmp_path, ReaderOptions(max_image_bytes=size))
    assert rows[0]["image"] == picture(0) and rows[1]["image"] is None
    reject = rows[1]["image_reject"]
    assert reject["reason"] == "image too large" and reject["num_bytes"] == size + 5
    assert LEAK not in reject["message"] and len(reject["message"]) < 150


DAMAGED = {
    "another character": "data:image/jpeg;base64," + encoded(picture(0)) + "!",
    "one character too many": "data:image/jpeg;base64," + encoded(picture(0)[:300]) + "A",
    "no comma": "data:image/jpeg;base64" + encoded(picture(0)),
    "base64, then something else": encoded(picture(0)) + "!!",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_base64_that_is_damaged_is_a_reject_that_does_not_repeat_it(name, tmp_path):
    rows, _, _ = read(write(tmp_path / "l.jsonl", [(DAMAGED[name], "a")]), tmp_path)
    reject = rows[0]["image_reject"]
    assert rows[0]["image"] is None and rows[0]["caption"] == "a" and rows[0]["metadata"] is None
    assert reject["reason"] == "not fetched" and LEAK not in reject["message"] and len(reject["message"]) < 150


@pytest.mark.parametrize("form", ["data URI", "base64", "url-safe base64"])
def test_a_malformed_row_does_not_repeat_its_picture(form, tmp_path):
    text = FORMS[form](picture(0))
    (tmp_path / "l.csv").write_text(f"image,caption\n{text},a,b\n{text},c\n")
    (tmp_path / "l.jsonl").write_text(f'{{"image": "{text}", "caption": }}\n{{"image": "{text}", "caption": "c"}}\n')
    (tmp_path / "lists.jsonl").write_text(f'{{"image": ["{text}"]}}\n')
    for name, reason in (("l.csv", "malformed row"), ("l.jsonl", "malformed row"), ("lists.jsonl", "not text")):
        reject = read(tmp_path / name, tmp_path)[0][0]["image_reject"]
        assert reject["reason"] == reason and text.rpartition(",")[2][:16] not in reject["message"]


def test_the_reject_of_a_picture_that_cannot_be_decoded_does_not_repeat_it(tmp_path, embed):
    broken = encoded(picture(0)[:200])
    write(tmp_path / "l.jsonl", [(f"data:image/jpeg;base64,{broken}", "a"), (broken, "b"), ("data:,<html>", "c")])
    embed(tmp_path / "l.jsonl", output=tmp_path / "out", flags=["--max_reject_fraction", 1])
    messages = [row["message"] for row in rows_of(tmp_path / "out", "rejects")]
    assert len(messages) == 3 and LEAK not in "".join(messages)
    assert messages[0].startswith("data:image/jpeg;base64: ")


NAMED = {
    "base64": ({"img_b64": encoded(picture(0)), "caption": "a"}, "img_b64"),
    "data URI": ({"thumb": f"data:image/jpeg;base64,{encoded(picture(0))}", "caption": "a"}, "thumb"),
    "a list": ({"image_base64_str": [encoded(picture(0))], "text": "a"}, "image_base64_str[0]"),
    "without captions": ({"img_b64": encoded(picture(0)), "n": 1}, "img_b64"),
}


@pytest.mark.parametrize("name", NAMED)
def test_pictures_in_another_column_are_named_with_the_flag_that_takes_them(name, tmp_path):
    row, column = NAMED[name]
    (tmp_path / "l.jsonl").write_text(json.dumps(row))
    try:
        _, line = take_inventory([str(tmp_path / "l.jsonl")], ReaderOptions()).detection
        assert line == (
            f"warning: {tmp_path}/l.jsonl: the pictures in the column {column} are not read; --image_column '{column}' "
            "takes them"
        )
    except PlanError as error:
        assert name == "without captions" and f"{column} holds pictures; name one with --image_column" in str(error)
    rows, _, _ = read(tmp_path / "l.jsonl", tmp_path, ReaderOptions(image_column=column))
    assert rows[0]["image"] == picture(0) and LEAK not in (rows[0]["metadata"] or "")
