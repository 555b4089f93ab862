"""TFRecords as img2dataset writes them: rows, columns, checksums and damage."""

import gzip
import json
import os

import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read
from tfrecords import example, frame, masked, write_tfrecord

from clip_transforms.shards.crc32c import crc32c, masked_crc32c
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.tfrecord import parse_example
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column


def sample(i, **more):
    """What img2dataset writes for a sample."""
    return {"key": f"{i:09d}", "jpg": picture(i, size=(20, 15)), "txt": f"picture number {i}", **more}


def test_img2datasets_features_become_a_row(tmp_path):
    meta = {"url": "https://a/b.jpg", "caption": "picture number 0", "status": "success", "width": 20, "score": 0.5}
    path = write_tfrecord(tmp_path / "00000.tfrecord", [sample(0, **meta), sample(1, txt="", width=-7)])
    rows, notes, errors = read(path, tmp_path, ReaderOptions(columns=(Column("w", "width", "int32"),)))
    assert not notes and not errors
    assert [(row["key"], row["row"], row["caption"], row["w"]) for row in rows] == [
        ("000000000", 0, "picture number 0", 20),
        ("000000001", 1, None, -7),
    ]
    assert [row["image"] for row in rows] == [picture(i, size=(20, 15)) for i in range(2)]
    assert json.loads(rows[0]["metadata"]) == {
        "url": "https://a/b.jpg",
        "caption": "picture number 0",
        "status": "success",
        "score": 0.5,
    }
    assert rows[1]["metadata"] is None


@pytest.mark.parametrize("type_", ["png", "webp", "image"])
def test_the_image_may_have_another_type(type_, tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", [{type_: b"1", "text": "a cat"}])
    (row,), _, _ = read(path, tmp_path)
    assert (row["key"], row["image"], row["caption"]) == ("0", b"1", "a cat")


def test_the_flags_name_features(tmp_path):
    features = {"picture": b"1", "alt": ["a cat", "two"], "txt": "no", "id": 7, "jpg": b"2", "mask": b"\xff\xfe"}
    path = write_tfrecord(tmp_path / "a.tfrecord", [features])
    options = ReaderOptions(image_column="picture", caption_column="alt[1]", key_column="id")
    (row,), _, _ = read(path, tmp_path, options)
    assert (row["key"], row["image"], row["caption"]) == ("7", b"1", "two")
    assert json.loads(row["metadata"]) == {"alt": ["a cat", "two"], "txt": "no", "jpg": "2"}


def test_an_absent_modality_an_empty_image_and_a_caption_in_another_encoding(tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", [{"txt": "words"}, {"jpg": b"", "txt": b"gr\xfcn"}, {"jpg": []}])
    rows, _, errors = read(path, tmp_path)
    assert not errors and [row["image"] for row in rows] == [None, b"", None]
    assert [row["caption"] for row in rows] == ["words", None, None]
    reasons = [[row[f"{m}_reject"] and row[f"{m}_reject"]["reason"] for m in ("image", "caption")] for row in rows]
    assert reasons == [[None, None], [None, "not UTF-8"], [None, None]]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.TFRecords", "a.tfrecord.gz", "train.tfrecord-00000-of-00010"])
def test_the_names_that_tfrecords_have(name, tmp_path):
    write_tfrecord(tmp_path / name, [sample(0)])
    found = take_inventory([str(tmp_path)], ReaderOptions())
    assert found.detection == [f"{tmp_path}: 1 TFRecord shard"]
    assert [unit.format for unit in found.units] == ["tfrecord"]


def test_a_compressed_one_is_known_by_its_first_bytes(tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", [sample(i) for i in range(3)])
    (tmp_path / "b.tfrecord.gz").write_bytes(gzip.compress((tmp_path / "a.tfrecord").read_bytes()))
    assert read(path, tmp_path) == read(tmp_path / "b.tfrecord.gz", tmp_path)
    # A record of this length begins like a gzip file.
    (tmp_path / "c.tfrecord").write_bytes(frame(example(jpg=b"x" * 0x88B1F))[:12] + b"")
    assert "ends in the record at byte 0" in read(tmp_path / "c.tfrecord", tmp_path)[2][0][1]


def test_a_record_that_fails_its_checksum_is_a_reject_and_the_next_ones_are_read(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, [sample(i) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[data.index(b"picture number 1")] ^= 1
    path.write_bytes(data)
    rows, _, errors = read(path, tmp_path)
    assert not errors and [(row["row"], row["caption"]) for row in rows] == [
        (0, "picture number 0"),
        (1, None),
        (2, "picture number 2"),
    ]
    assert [rows[1][f"{m}_reject"]["reason"] for m in ("image", "caption")] == ["unreadable"] * 2
    assert "fails its checksum" in rows[1]["image_reject"]["message"]


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 30, 100])
def test_a_truncated_one_gives_the_samples_before_the_cut(cut, tmp_path):
    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, [sample(0)])
    whole = path.stat().st_size
    write_tfrecord(path, [sample(i) for i in range(2)])
    os.truncate(path, whole + cut)
    rows, _, errors = read(path, tmp_path)
    assert [row["caption"] for row in rows] == ["picture number 0"]
    assert (
        len(errors) == 1 and errors[0][0] == "unreadable" and errors[0][1].startswith("after 1 samples: the TFRecord")
    )


@pytest.mark.parametrize("data", [b"x" * 100, b"<html>" * 5, b"\0" * 16], ids=["text", "html", "zeros"])
def test_something_else_under_the_name_is_a_reject_of_the_shard(data, tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(data)
    rows, _, errors = read(tmp_path / "a.tfrecord", tmp_path)
    assert not rows and errors[0][0] == "unreadable" and "no TFRecord, or damaged" in errors[0][1]


def test_a_record_that_is_no_example_is_a_reject(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(frame(b"\xff" * 30) + frame(example(jpg=b"1")) + frame(b""))
    rows, _, errors = read(tmp_path / "a.tfrecord", tmp_path)
    assert not errors and rows[0]["image_reject"]["reason"] == "unreadable" and rows[1]["image"] == b"1"
    assert [rows[2][name] for name in ("image", "caption", "image_reject", "caption_reject")] == [None] * 4


def test_an_image_over_its_limit_is_a_reject(tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", [{"jpg": b"x" * 101, "txt": "a"}, {"jpg": b"x" * 100, "txt": "b"}])
    rows, _, _ = read(path, tmp_path, ReaderOptions(max_image_bytes=100))
    assert rows[0]["image_reject"]["reason"] == "image too large" and rows[1]["image"] == b"x" * 100


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3_000))
def test_the_checksum_is_castagnolis(data):
    assert crc32c(b"123456789") == 0xE3069283
    assert masked_crc32c(data).to_bytes(4, "little") == masked(data)


values = st.one_of(
    st.lists(st.binary(max_size=20), max_size=3),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), values, max_size=4))
def test_any_example_is_parsed_as_protobuf_wrote_it(features):
    parsed = parse_example(example(**features))
    assert parsed == {name: found[0] if len(found) == 1 else found or None for name, found in features.items()}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data):
    try:
        parse_example(data)
    except (ValueError, IndexError):
        pass
