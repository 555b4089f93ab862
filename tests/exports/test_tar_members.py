"""The members of an exported sample: names that every reader takes, and JSON that keeps what was known."""

import json

import numpy as np
import pytest
from conftest import picture

from clip_transforms.exports.tar_members import Names, members_of


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["000000", "000001"], ["000000", "000001"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a-2", "a", "a", "a"], ["a-2", "a", "a-3", "a-4"]),
        (["a", "a", "a-2", "a-2"], ["a", "a-2", "a-2-2", "a-2-3"]),
        (["in/b.2024/c.d.jpg", "in/b.2024/c.d.PNG"], ["in_b_2024_c_d", "in_b_2024_c_d-2"]),
        ([".hidden", "../../etc/passwd", "/abs.jpg"], ["hidden", "etc_passwd", "abs"]),
        (["", "...", "\0\n", " "], ["sample", "sample-2", "sample-3", "sample-4"]),
        (["https://x.org/a?b=c&d", "日本語 の.jpg"], ["https_x_org_a_b_c_d", "日本語_の"]),
        (["x" * 500, "x" * 400], ["x" * 120, "x" * 120 + "-2"]),
    ],
)
def test_a_name_is_the_key_as_far_as_it_may_be_one_and_comes_once(keys, names):
    found = Names()
    assert [found.of(key) for key in keys] == names


def test_ten_thousand_samples_of_one_key_are_named_at_once():
    names = Names()
    assert len({names.of("same") for _ in range(10_000)}) == 10_000


def row(**values):
    fields = {"key": "k", "caption": "words", "clip_score": np.float32(0.29), "metadata": None}
    return {**fields, **values}


@pytest.mark.parametrize(
    ("format_", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("AVIF", "avif"),
    ],
)
def test_the_extension_is_that_of_the_bytes_and_the_bytes_are_untouched(format_, extension):
    data = picture(1, format_=format_)
    members = members_of("a", row(key="a.jpg"), data, [], [])
    assert [name for name, _ in members] == [f"a.{extension}", "a.txt", "a.json"] and members[0][1] == data


def test_the_json_holds_score_labels_columns_and_the_metadata():
    values = row(metadata='{"uid": "f", "width": 3, "nested": {"a": [1]}}', licence="cc0", n=np.float32(0.1))
    values |= {"t.label": "cat", "t.probability": np.float32(0.7), "t.similarity": np.float32(0.2), "t.margin": None}
    values |= {f"u.{name}": None for name in ("label", "probability", "similarity", "margin")}
    (_, text), (_, data) = members_of("a", values, None, ["licence", "n"], ["t", "u"])
    assert text == b"words"
    assert json.loads(data) == {
        "uid": "f",
        "width": 3,
        "nested": {"a": [1]},
        "key": "k",
        "caption": "words",
        "clip_score": 0.29,
        "labels": {"t": {"label": "cat", "probability": 0.7, "similarity": 0.2, "margin": None}, "u": None},
        "licence": "cc0",
        "n": 0.1,
    }


def test_what_the_metadata_had_under_our_names_is_kept_apart():
    values = row(metadata='{"key": "other", "caption": "theirs", "clip_score": 0.29, "metadata": 1}', caption=None)
    ((_, data),) = members_of("a", values, None, [], [])
    assert json.loads(data) == {
        "key": "k",
        "caption": None,  # so that no reader takes the other one for the caption that was rejected
        "clip_score": 0.29,
        "metadata": {"key": "other", "caption": "theirs", "metadata": 1},
    }


def test_a_column_of_the_users_is_kept_apart_from_labels_and_is_not_taken_for_the_captions():
    values = row(metadata='{"labels": [1], "licence": "mit"}', labels="a,b", captions="other words", licence="cc0")
    values |= {f"t.{name}": None for name in ("label", "probability", "similarity", "margin")}
    (_, text), (_, data) = members_of("a", values, None, ["labels", "captions", "licence"], ["t"])
    fields = json.loads(data)
    assert text == b"words" and fields["captions"] == "other words"
    assert fields["labels"] == {"t": None} and fields["licence"] == "cc0"
    assert fields["metadata"] == {"labels": "a,b", "licence": "mit"}


@pytest.mark.parametrize("text", ["[1, 2]", "3", '{"a": NaN, "b": Infinity}', "no JSON"])
def test_any_metadata_becomes_valid_json(text):
    ((_, _), (_, data)) = members_of("a", row(metadata=text), None, [], [])

    def refuse(constant):
        raise AssertionError(constant)

    fields = json.loads(data, parse_constant=refuse)
    assert fields["key"] == "k" and ("metadata" in fields or fields["a"] is None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_numbers_that_json_lacks_are_null(value):
    ((_, _), (_, data)) = members_of("a", row(n=value), None, ["n"], [])
    assert json.loads(data)["n"] is None


@pytest.mark.parametrize("bits", [0x3E947AE1, 0x00000001, 0x3F7FFFFF, 0xBE000001])
def test_a_float32_is_written_so_that_it_comes_back(bits):
    value = np.array([bits], np.uint32).view(np.float32)[0]
    ((_, _), (_, data)) = members_of("a", row(clip_score=value), None, [], [])
    assert np.float32(json.loads(data)["clip_score"]) == value and len(data) < 120
