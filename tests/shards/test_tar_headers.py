"""A plain header is parsed without `tarfile`, and means the same; any other goes to `tarfile`."""

import io
import tarfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_transforms.shards.tar import _StrictTarInfo, read_members
from clip_transforms.shards.tar_samples import keyed_members

FORMATS = {"GNU": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT}


def header(name="a/b.jpg", size=5, kind=tarfile.REGTYPE, format_=tarfile.GNU_FORMAT, **more):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in more.items():
        setattr(info, field, value)
    return info.tobuf(format_)[-512:]


def parsed(cls, data):
    try:
        info = cls.frombuf(data, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return type(error)
    return info.name, info.size, info.type, info.isfile(), info.isdir(), info.sparse


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [0, 5, 8**11 - 1])
@pytest.mark.parametrize("name", ["a.jpg", "x/" * 40 + "y" * 30 + ".jpg", "é/ü.jpg", "a" * 100])
def test_plain_headers_are_parsed_here(format_, size, name, monkeypatch):
    data = header(name, size, format_=format_)
    expected = parsed(tarfile.TarInfo, data)
    monkeypatch.setattr(tarfile.TarInfo, "frombuf", classmethod(lambda *_: pytest.fail("left to tarfile")))
    assert parsed(_StrictTarInfo, data) == expected and expected[1] == size


@pytest.mark.parametrize(
    "data",
    [
        header(size=8**11),  # in base 256
        header(kind=tarfile.AREGTYPE),
        header("folder/", 0, tarfile.DIRTYPE),
        header(kind=tarfile.SYMTYPE, size=0, linkname="b"),
        header(kind=tarfile.CHRTYPE, size=0, devmajor=1, devminor=3),
        header(mtime=8**12),
        header(uid=8**8),
        header()[:500],
        bytes(512),
        b"",
    ],
    ids=["huge", "old", "folder", "link", "device", "late", "large id", "cut", "end mark", "nothing"],
)
def test_any_other_header_is_left_to_tarfile(data, monkeypatch):
    asked, original = [], tarfile.TarInfo.frombuf.__func__
    monkeypatch.setattr(
        tarfile.TarInfo, "frombuf", classmethod(lambda cls, *of: asked.append(cls) or original(cls, *of))
    )
    found = parsed(_StrictTarInfo, data)
    assert asked == [_StrictTarInfo] and found == parsed(tarfile.TarInfo, data)


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4))
def test_a_changed_header_means_what_tarfile_says(format_, changes):
    data = bytearray(header(format_=FORMATS[format_]))
    for place, value in changes:
        data[place] = value
    assert parsed(_StrictTarInfo, bytes(data)) == parsed(tarfile.TarInfo, bytes(data))
    # The same with a checksum that fits.
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:]) + 256)
    assert parsed(_StrictTarInfo, bytes(data)) == parsed(tarfile.TarInfo, bytes(data))


def test_a_sparse_member_is_read_with_its_holes(tmp_path):
    """As GNU tar writes it with --sparse: the data of two pieces, and between them a hole."""
    sparse = b"".join(b"%011o\0" % number for number in (0, 512, 4096, 512)) + bytes(48)
    info = bytearray(header("a.bin", 1024, tarfile.GNUTYPE_SPARSE))
    info[386:482], info[482], info[483:495] = sparse, 0, b"%011o\0" % 4608
    info[148:156] = b"%06o\0 " % (sum(info[:148]) + sum(info[156:]) + 256)
    data = bytes(info) + b"x" * 512 + b"y" * 512
    with io.BytesIO() as end:
        with tarfile.open(fileobj=end, mode="w") as tar:
            after = tarfile.TarInfo("b.txt")
            after.size = 3
            tar.addfile(after, io.BytesIO(b"abc"))
        data += end.getvalue()
    (tmp_path / "a.tar").write_bytes(data)
    found = {}
    for member in read_members(str(tmp_path / "a.tar")):
        found[member.name] = member.start(2) and member.read()
    assert found == {"a.bin": b"x" * 512 + bytes(3584) + b"y" * 512, "b.txt": b"abc"}


def test_what_a_global_header_says_holds_for_members_with_plain_headers(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "b.txt"}) as tar:
        for name in ("x.txt", "y.txt", "z.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["b.txt"] * 3
    assert [member.name for member in read_members(str(path))] == ["b.txt"] * 3


def test_slashes_that_come_twice_before_a_base_name_are_no_part_of_a_key(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a//b.jpg", "a/b.txt", "/c.jpg", "d.e.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    keys = [(row, key, extension) for row, key, extension, _ in keyed_members(read_members(str(path)), Counter())]
    assert keys == [(0, "a/b", "jpg"), (0, "a/b", "txt"), (1, "/c", "jpg"), (2, "d", "e.jpg")]
