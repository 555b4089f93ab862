"""Captions of tars and folders under other names, and what is said of members that are not read."""

import io
import json
import tarfile

import pytest
from conftest import picture, write_tar
from reading import read

from clip_transforms.shards.inventory import PlanError
from clip_transforms.shards.json_fields import field_names, json_field
from clip_transforms.shards.unit import ReaderOptions

SAMPLE = {
    "json": json.dumps(
        {
            "caption": "IMG_1.JPG",
            "re_caption": "a red star",
            "list": ["first", "second"],
            "nested": {"en": "english", "deep": [{"text": "deep"}]},
            "a.b": "dotted",
            "width": 64,
            "none": None,
        }
    ).encode(),
    "txt": b"from txt",
    "cap": b"from cap\n",
    "outputs.txt": b"two parts",
    "text": b"from text",
}
ASKED = {
    None: "from txt",
    "re_caption": "a red star",
    "caption": "IMG_1.JPG",
    "list[0]": "first",
    "list[1]": "second",
    "list[2]": None,
    "nested.en": "english",
    "nested.deep[0].text": "deep",
    "a.b": "dotted",
    "cap": "from cap",
    ".cap": "from cap",
    "CAP": "from cap",
    "txt": "from txt",
    "text": "from text",
    "none": None,
    "nothing": None,
}


@pytest.mark.parametrize("layout", ["tar", "folder", "glob"])
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_caption_column_names_a_field_or_an_extension(layout, asked, tmp_path):
    files = {"jpg": picture(0), **{e: data for e, data in SAMPLE.items() if layout == "tar" or e != "outputs.txt"}}
    if layout == "tar":
        path = write_tar(tmp_path / "a.tar", [(f"s.{extension}", data) for extension, data in files.items()])
    else:
        (tmp_path / "in").mkdir()
        for extension, data in files.items():
            (tmp_path / "in" / f"s.{extension}").write_bytes(data)
        path = tmp_path / "in" / ("" if layout == "folder" else "*.jpg")
    (row,), _, _ = read(path, tmp_path, ReaderOptions(caption_column=asked))
    assert (row["caption"], row["caption_reject"]) == (ASKED[asked], None) and row["image"] == picture(0)


def test_an_extension_may_have_two_parts(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("s.input.jpg", picture(0)), ("s.outputs.txt", b"a red star")])
    (row,), notes, _ = read(path, tmp_path)
    assert row["caption"] is None and notes == {".txt members that were not read": 1, "field..outputs.txt": 1}
    (row,), notes, _ = read(path, tmp_path, ReaderOptions(caption_column="outputs.txt"))
    assert row["caption"] == "a red star" and notes == {}


@pytest.mark.parametrize(
    "asked, reason, says",
    [
        ("width", "not text", "the caption is 64, but it must be a text"),
        ("list", "not text", "--captions all takes each text of a list, and --caption_column 'list[0]' takes one"),
        ("nested", "not text", "--caption_column 'nested.en' takes one"),
    ],
)
@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_a_field_that_is_no_text_is_a_reject_that_names_the_way_out(asked, reason, says, layout, tmp_path):
    members = [("s.jpg", picture(0)), ("s.json", SAMPLE["json"])]
    path = write_tar(tmp_path / "a.tar", members)
    if layout == "folder":
        path = tmp_path / "in"
        path.mkdir()
        for name, data in members:
            (path / name).write_bytes(data)
    (row,), _, _ = read(path, tmp_path, ReaderOptions(caption_column=asked))
    assert row["caption_reject"]["reason"] == reason and row["caption_reject"]["message"].endswith(says)


def test_a_caption_in_json_under_an_image_extension_is_a_field(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("s.jpg", picture(0)), ("s.json", b'{"jpg": "words"}')])
    (row,), _, _ = read(path, tmp_path, ReaderOptions(caption_column="jpg"))
    assert row["image"] == picture(0) and row["caption"] == "words"


def test_names_of_fields_are_found_again():
    fields = json.loads(SAMPLE["json"])
    names = list(field_names(fields))
    assert names == ["caption", "re_caption", "list[0]", "nested.en", "nested.deep", "a.b"]  # a number is no caption
    assert all(json_field(fields, name) is not None for name in names)
    assert json_field({"a": {"b.c": 1}}, "a.b.c") == 1 and json_field({"a": [[1, 2]]}, "a[0][1]") == 2
    assert json_field({"a": "text"}, "a.b") is None and json_field({"a": [1]}, "a[x]") is None


def pairs(count, extension, data):
    return [m for i in range(count) for m in ((f"{i:02d}.jpg", picture(i % 3)), (f"{i:02d}.{extension}", data))]


@pytest.mark.parametrize("limit", [0, 3])
def test_a_unit_without_captions_notes_the_fields_of_its_first_samples(limit, tmp_path):
    text = json.dumps({"prompt": "a", "width": 3, "empty": "", "meta": {"alt": "b"}, "tags": ["c"]}).encode()
    path = write_tar(tmp_path / "a.tar", pairs(10, "json", text))
    _, notes, _ = read(path, tmp_path, ReaderOptions(limit=limit))
    assert notes == dict.fromkeys(["field.meta.alt", "field.prompt", "field.tags[0]"], limit or 8)
    assert list(notes) == sorted(notes)


def test_a_unit_with_one_caption_notes_nothing_and_one_with_no_image_does(tmp_path):
    members = [*pairs(5, "json", b'{"prompt": "a"}'), ("x.jpg", picture(0)), ("x.txt", b"a cat")]
    assert read(write_tar(tmp_path / "a.tar", members), tmp_path)[1] == {}
    members = [(f"{i}.{e}", b"words") for i in range(3) for e in ("txt", "jp2")]
    notes = read(write_tar(tmp_path / "b.tar", members), tmp_path)[1]
    assert notes == {".jp2 members that were not read": 3, "field..jp2": 3}


@pytest.mark.parametrize("pattern", ["", "*.jpg"])
def test_a_folder_without_captions_notes_fields_and_extensions(pattern, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        for name, data in (("jpg", picture(i)), ("cap", b"a cat"), ("json", b'{"caption": "a"}')):
            (tmp_path / "in" / f"{i}.{name}").write_bytes(data)
    notes = read(tmp_path / "in" / pattern, tmp_path)[1]
    assert notes == ({"field..cap": 3} if pattern == "" else {}) | {"field.caption": 3}
    rows, notes, _ = read(tmp_path / "in" / pattern, tmp_path, ReaderOptions(caption_column="cap"))
    assert notes == {} and [row["caption"] for row in rows] == ["a cat"] * 3


def test_members_that_are_not_read_are_counted_by_extension(tmp_path):
    members = [(f"{i}.{e}", b"1") for i in range(3) for e in ("jp2", "depth.npy", "cls")] + [("a", b"words")]
    rows, notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert len(rows) == 4
    assert {name: count for name, count in notes.items() if "members" in name} == {
        ".jp2 members that were not read": 3,
        ".npy members that were not read": 3,
        ".cls members that were not read": 3,
        "extensionless members that were not read": 1,
    }


def test_a_tar_of_tars_is_said_to_be_one(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    path = write_tar(tmp_path / "a.tar", [(f"n{i}.tar", inner.getvalue()) for i in range(4)])
    rows, notes, _ = read(path, tmp_path)
    assert len(rows) == 4 and notes[".tar members that were not read"] == 4


def test_a_hundred_extensions_are_not_a_hundred_notes(tmp_path):
    members = [("a.jpg", picture(0)), *((f"a.x{i}", b"1") for i in range(100))]
    _, notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    counts = {name: count for name, count in notes.items() if name.endswith("members that were not read")}
    assert len(counts) == 21 and counts["other members that were not read"] == 80


def test_a_picture_beside_the_one_that_is_taken_is_named(tmp_path):
    members = [("a.jpg", b"1"), ("a.seg.png", b"2"), ("a", picture(0)), ("b.seg.png", b"3")]
    rows, notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert [row["image"] for row in rows] == [b"1", b"3"]
    assert notes == {".seg.png members that were not read": 1, "extensionless members that were not read": 1}


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.pjpeg", "a.pjp", "a", "x/a"])
def test_a_member_by_any_of_these_names_is_a_picture(name, tmp_path):
    (row,), notes, errors = read(write_tar(tmp_path / "a.tar", [(name, picture(0))]), tmp_path)
    assert row["image"] == picture(0) and row["key"] == name.split(".")[0] and not notes and not errors


@pytest.mark.parametrize("size, reason", [(len(picture(0)), None), (len(picture(0)) - 1, "image too large")])
def test_a_picture_without_an_extension_has_the_same_limit(size, reason, tmp_path):
    (row,), _, _ = read(
        write_tar(tmp_path / "a.tar", [("a", picture(0))]), tmp_path, ReaderOptions(max_image_bytes=size)
    )
    assert (row["image_reject"] and row["image_reject"]["reason"]) == reason


def test_a_tar_that_ends_in_a_picture_without_an_extension(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("a.txt", b"1"), ("b", picture(0))])
    path.write_bytes(path.read_bytes()[: 1024 + 512 + 100])
    rows, _, errors = read(path, tmp_path)
    assert [row["key"] for row in rows] == ["a", "b"] and len(errors) == 1
    assert rows[1]["image"] is None and "'b' is damaged" in errors[0][1]  # nobody knows what it was


def test_dots_in_names_are_explained_with_the_key_that_came_of_them(tmp_path):
    members = [(f"www.site.com_{i}.{e}", d) for i in range(6) for e, d in (("jpg", picture(i)), ("txt", b"a"))]
    (row,), notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    message = row["image_reject"]["message"]
    assert message.startswith("6 images under the key 'www' (.site.com_0.jpg, ")
    assert "a key ends at the first dot of a member's name" in message
    assert "if each is a sample of its own, rename the members so that the only dot is before the extension" in message
    assert (
        notes["pictures that share a key, which ends at the first dot of a name, with others, and were not read"] == 6
    )
    renamed = [(name.replace(".", "_", 2), data) for name, data in members]
    rows, _, _ = read(write_tar(tmp_path / "b.tar", renamed), tmp_path)
    assert [(row["key"], row["caption"]) for row in rows] == [(f"www_site_com_{i}", "a") for i in range(6)]
    (row,), _, _ = read(tmp_path / "a.tar", tmp_path, ReaderOptions(image_extension="site.com_0.jpg"))
    assert row["image"] == picture(0)


def test_dot_files_and_doubled_names_in_a_tar_are_counted(tmp_path):
    members = [(".a.jpg", picture(0)), ("._b.jpg", b"x"), ("b.jpg", b"1"), ("b.txt", b"first"), ("b.txt", b"second")]
    (row,), notes, _ = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert row["caption"] == "first"
    assert notes == {
        "members that are dot files, which are not read": 1,
        "members whose name comes twice under a key; the first one counts": 1,
    }


def test_caption_column_is_refused_by_no_format(tmp_path):
    write_tar(tmp_path / "a.tar", [("s.jpg", picture(0))])
    with pytest.raises(PlanError, match="--key_column x is for"):
        read(tmp_path / "a.tar", tmp_path, ReaderOptions(key_column="x"))
    assert read(tmp_path / "a.tar", tmp_path, ReaderOptions(caption_column="x"))[0][0]["caption"] is None
