"""Webdataset tars: keys, images, captions, metadata and damage."""

import io
import tarfile

import pytest
from conftest import make_tar, pair, picture, write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read

from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column


def tar(tmp_path, members):
    return write_tar(tmp_path / "a.tar", members)


def one(tmp_path, members, options=None):
    rows, notes, errors = read(tar(tmp_path, members), tmp_path, options)
    assert len(rows) == 1 and not errors
    return rows[0], notes


def test_the_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    rows, _, _ = read(tar(tmp_path, pair("v1.0/a.b", 0)[:1] + pair("v1.0/c", 1)), tmp_path)
    assert [row["key"] for row in rows] == ["v1.0/a", "v1.0/c"]


@pytest.mark.parametrize(
    "members, image",
    [
        ({"jpg": b"1"}, b"1"),
        ({"JPG": b"1"}, b"1"),
        ({"png": b"1", "seg.png": b"2"}, b"1"),
        ({"seg.png": b"2"}, b"2"),
        ({"txt": b"only words"}, None),
    ],
    ids=["jpg", "upper case", "whole extension first", "only a tail", "none"],
)
def test_which_member_is_the_image(members, image, tmp_path):
    row, _ = one(tmp_path, [(f"a.{e}", data) for e, data in members.items()])
    assert row["image"] == image and row["image_reject"] is None


@pytest.mark.parametrize(
    "names, cure",
    [
        (("jpg", "png"), "choose one with --image_extension, as jpg"),
        (("a.png", "b.png"), "choose one with --image_extension, as a.png"),
        (("jpg", "jpg"), "write the tar again with a name for each"),
    ],
    ids=["two types", "two tails", "twice the same"],
)
def test_several_images_under_a_key_are_a_reject_that_names_the_cure(names, cure, tmp_path):
    row, _ = one(tmp_path, [(f"a.{name}", b"12") for name in names] + [("a.txt", b"a cat")])
    assert row["image"] is None and row["caption"] == "a cat"
    assert row["image_reject"]["reason"] == "several images" and row["image_reject"]["num_bytes"] == 4
    assert cure in row["image_reject"]["message"]


def test_image_extension_chooses_among_several(tmp_path):
    members = [("a.jpg", b"1"), ("a.seg.png", b"2")]
    row, _ = one(tmp_path, members, ReaderOptions(image_extension="seg.png"))
    assert row["image"] == b"2" and row["image_reject"] is None


@pytest.mark.parametrize(
    "members, caption",
    [
        ({"txt": b" a cat\n"}, "a cat"),
        ({"caption": b"a dog", "json": b'{"caption": "json"}'}, "a dog"),
        ({"text": b"a dog", "txt": b"first"}, "first"),
        ({"json": b'{"caption": "from json"}'}, "from json"),
        ({"json": b'{"caption": null}'}, None),
        ({"txt": b" \n"}, None),
        ({"txt": b"\xef\xbb\xbfwith a mark"}, "with a mark"),
        ({"txt": b"two\nlines"}, "two\nlines"),
        ({}, None),
    ],
    ids=["txt", "caption before json", "txt first", "json", "json null", "blank", "bom", "two lines", "none"],
)
def test_which_member_is_the_caption(members, caption, tmp_path):
    row, _ = one(tmp_path, [("a.jpg", b"1")] + [(f"a.{e}", data) for e, data in members.items()])
    assert row["caption"] == caption and row["caption_reject"] is None


@pytest.mark.parametrize(
    "member, reason", [(("a.txt", b"gr\xfcn"), "not UTF-8"), (("a.json", b'{"caption": 7}'), "not text")], ids=str
)
def test_a_caption_that_cannot_be_used_is_a_reject(member, reason, tmp_path):
    row, _ = one(tmp_path, [("a.jpg", b"1"), member])
    assert row["caption"] is None and row["caption_reject"]["reason"] == reason


def test_a_key_that_comes_back_is_counted_and_a_sample_of_its_own(tmp_path):
    rows, notes, _ = read(tar(tmp_path, pair("a", 0) + pair("b", 1) + pair("a", 2)), tmp_path)
    assert [(row["key"], row["row"]) for row in rows] == [("a", 0), ("b", 1), ("a", 2)]
    assert notes == {"keys that come back after others": 1}


def test_a_group_without_image_or_caption_is_a_sample_unlike_dot_files_and_folders(tmp_path):
    rows, _, _ = read(tar(tmp_path, [("._a.jpg", b"x"), ("a.npy", b"1"), (".hidden", b"2")]), tmp_path)
    assert [(row["key"], row["image"], row["caption"]) for row in rows] == [("a", None, None)]


def test_malformed_json_is_counted_and_the_sample_stays(tmp_path):
    row, notes = one(tmp_path, pair("a", 0, json=b"{not json"))
    assert row["caption"] == "picture number 0" and row["metadata"] is None
    assert notes == {"JSON files that are not a JSON object": 1}


def test_columns_come_from_a_member_or_a_json_field_and_are_cast(tmp_path):
    columns = tuple(Column.parse(text, ()) for text in ("cls:int32", "width_px=width:int64", "note", "bad:int32"))
    text = '{"width": "640", "note": {"a": 1}, "bad": "x"}'
    row, notes = one(tmp_path, pair("a", 0, cls=b" 7\n", json=text.encode()), ReaderOptions(columns=columns))
    assert (row["cls"], row["width_px"], row["note"], row["bad"]) == (7, 640, '{"a": 1}', None)
    assert row["metadata"] == text
    assert notes == {"values of --columns bad:int32 that could not be cast": 1}


@pytest.mark.parametrize("extension, found", [("png", True), (".PNG", True), ("webp", False)])
def test_an_image_extension_may_have_its_dot_and_one_that_fits_nothing_is_counted(extension, found, tmp_path):
    row, notes = one(tmp_path, [("a.png", b"1"), ("a.jpg", b"2")], ReaderOptions(image_extension=extension))
    assert (row["image"] == b"1") is found
    assert ("keys whose only images have another extension than --image_extension" in notes) is not found


def test_half_a_surrogate_pair_is_a_reject_and_no_crash(tmp_path):
    text = b'{"caption": "hi \\ud83d there", "note": "\\ud83d"}'
    options = ReaderOptions(columns=(Column("note", "note"),))
    row, notes = one(tmp_path, [("a.jpg", b"1"), ("a.json", text)], options)
    assert row["caption"] is None and row["caption_reject"]["reason"] == "not UTF-8" and row["note"] is None
    assert notes == {"values of --columns note that could not be cast": 1}


def test_nothing_beyond_the_limit_is_counted(tmp_path):
    members = [m for i in range(4) for m in pair(f"{i}", i, json=b"{no json")]
    assert read(tar(tmp_path, members), tmp_path, ReaderOptions(limit=1))[1] == {
        "JSON files that are not a JSON object": 1
    }


def test_a_tar_gives_its_samples_in_order(tmp_path):
    rows, notes, errors = read(make_tar(tmp_path / "a.tar", 7), tmp_path)
    assert [(row["key"], row["row"], row["caption"]) for row in rows] == [
        (f"{i:06d}", i, f"picture number {i}") for i in range(7)
    ]
    assert [row["image"] for row in rows] == [picture(i) for i in range(7)]
    assert not notes and not errors


@pytest.mark.parametrize("cut", range(0, 10240, 300))
def test_a_truncated_tar_gives_the_samples_before_the_cut_and_says_where_it_is(cut, tmp_path):
    path = tmp_path / "a.tar"
    make_tar(path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    rows, _, errors = read(path, tmp_path)
    assert len(errors) == 1 and errors[0][0] == "unreadable"
    if rows:
        assert f"after {len(rows)} samples" in errors[0][1]
    sizes = [1024 + (-(-len(picture(i)) // 512)) * 512 + 512 for i in range(4)]  # two headers, two bodies
    complete = sum(1 for i in range(4) if sum(sizes[: i + 1]) <= cut)
    assert complete <= len(rows) <= complete + 1
    for i, row in enumerate(rows[:complete]):
        assert (row["image"], row["caption"]) == (picture(i), f"picture number {i}")
    if len(rows) > complete:  # the one that the cut fell into: whole members are taken, the lost one is a reject
        row = rows[-1]
        assert row["image"] in (None, picture(complete))
        assert row["caption"] in (None, f"picture number {complete}")  # whole where only its padding is cut
        assert row["image"] or row["image_reject"]["reason"] == "unreadable"


def test_garbage_between_members_is_an_error(tmp_path):
    path = tmp_path / "a.tar"
    make_tar(path, 4)
    data = bytearray(path.read_bytes())
    place = data.index(b"000002.jpg")
    data[place : place + 300] = b"\xff" * 300
    path.write_bytes(data)
    rows, _, errors = read(path, tmp_path)
    assert len(rows) == 2 and errors[0][0] == "unreadable"


def test_an_empty_tar_has_no_samples(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", []), tmp_path) == ([], {}, [])


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard link", "symbolic link"])
def test_a_link_in_a_tar_is_a_reject_and_no_absence(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in pair("a", 0):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = kind, "a.jpg"
        tar.addfile(link)
    rows, _, errors = read(tmp_path / "a.tar", tmp_path)
    assert not errors and rows[1]["image"] is None and rows[1]["image_reject"]["reason"] == "unreadable"


def test_two_concatenated_tars_are_an_error(tmp_path):
    a, b = (make_tar(tmp_path / name, 2) for name in ("a.tar", "b.tar"))
    (tmp_path / "c.tar").write_bytes(open(a, "rb").read() + open(b, "rb").read())
    rows, _, errors = read(tmp_path / "c.tar", tmp_path)
    assert len(rows) == 2 and "follows the end mark" in errors[0][1]


groups = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c.d", "x/a"]),
        st.lists(
            st.sampled_from(["jpg", "png", "seg.png", "txt", "caption", "json", "npy", "cls"]), min_size=1, max_size=4
        ),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=groups, one_size=st.integers(1, 5), other=st.integers(1, 5))
def test_any_tar_gives_the_same_rows_whatever_the_batch_and_every_modality_once(samples, one_size, other, tmp_path):
    members = [(f"{key}.{extension}", b'{"caption": "x"}') for key, extensions in samples for extension in extensions]
    path = tar(tmp_path, members)
    rows, notes, errors = read(path, tmp_path, batch_size=one_size)
    assert (rows, notes, errors) == read(path, tmp_path, batch_size=other)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert not (row["image"] and row["image_reject"]) and not (row["caption"] and row["caption_reject"])
