"""Damaged and odd tars: all samples before the damage are read, one shard error says where it is, nothing hangs."""

import gzip
import io
import struct
import tarfile

import pytest
from conftest import make_tar, pair, picture, rows_of, write_tar
from reading import read

from clip_transforms.shards.unit import ReaderOptions


def block(name, data, **fields):
    """Return the header and the body of a member as a tar has them."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


def raw(name, data, size=None, kind=b"0"):
    """Return a member with an arbitrary header; `size` is the twelve bytes of that field."""
    header = bytearray(block(name, b"")[:512])
    header[124:136] = b"%011o\0" % len(data) if size is None else size
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + b"\0" * (-len(data) % 512)


def sample(i):
    return b"".join(block(name, data) for name, data in pair(f"{i}", i))


END = b"\0" * 1024


def rows_around(tmp_path, odd, behind=True):
    """Read two good samples, some odd bytes, and two more good samples."""
    data = sample(0) + sample(1) + odd + (sample(2) + sample(3) + END if behind else b"")
    (tmp_path / "a.tar").write_bytes(data)
    rows, notes, errors = read(tmp_path / "a.tar", tmp_path)
    assert [row["row"] for row in rows] == list(range(len(rows))) and len(errors) <= 1
    good = [row for row in rows if row["key"] in list("0123")]
    for row in good:
        assert (row["image"], row["caption"]) == (picture(int(row["key"])), f"picture number {row['key']}")
    return [row["key"] for row in rows], rows, errors


DAMAGE = {
    "garbage": b"\xff" * 512,
    "text": b"<html>" * 100 + b"\0" * 424,
    "wrong checksum": raw("9.jpg", b"")[:200] + b"9" + raw("9.jpg", b"")[201:],
    "half a header": raw("9.jpg", b"")[:300] + sample(9),
    "no number as size": raw("9.npy", b"", size=b"zzzzzzzzzzz\0"),
    "negative size": raw("9.npy", b"", size=b"\xff" * 12),
    "huge size": raw("9.npy", b"", size=b"\x80" + b"\x7f" * 11),
    "huge size of a picture": raw("9.jpg", b"", size=b"\x80" + b"\x7f" * 11),
    "huge size of a caption": raw("9.txt", b"", size=b"\x80" + b"\x7f" * 11),
    "huge pax size": raw("h", b"40 size=" + b"9" * 31 + b"\n", kind=b"x") + raw("9.jpg", b""),
    "negative pax size": raw("h", b"12 size=-99\n", kind=b"x") + raw("9.jpg", b""),
    "longer than the file": raw("9.npy", b"", size=b"%011o\0" % (1 << 32)),
    "huge pax header": raw("h", b"", size=b"%011o\0" % (1 << 30), kind=b"x"),
    "huge long name": raw("h", b"", size=b"%011o\0" % (1 << 30), kind=b"L"),
    "endless pax headers": raw("h", b"11 path=aa\n", kind=b"x") * 3000,
    "endless long names": raw("h", b"aa\0", kind=b"L") * 3000,
    "pax with a length of many digits": raw("h", b"1" * 5000 + b" path=aa\n", kind=b"x") + raw("9.npy", b""),
    "a sparse map without its end": raw("h", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", kind=b"x")
    + raw("9.npy", b"1" * 512),
    "an end mark in the middle": END,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_in_the_middle_is_one_error_after_the_samples_before_it(name, tmp_path):
    keys, rows, errors = rows_around(tmp_path, DAMAGE[name])
    assert keys[:2] == ["0", "1"] and "2" not in keys
    (error,) = errors
    assert error[0] == "unreadable" and f"after {len(rows)} samples" in error[1] and "byte" in error[1]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", sorted(set(DAMAGE) - {"an end mark in the middle"}))
def test_damage_at_the_end_is_one_error_too(name, tmp_path):
    keys, _, errors = rows_around(tmp_path, DAMAGE[name], behind=False)
    assert keys[:2] == ["0", "1"] and len(errors) == 1


def pax(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, headers in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), headers
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue().rstrip(b"\0")
    return data + b"\0" * (-len(data) % 512)


ODD = {
    "a folder": (block("sub/", b"", type=tarfile.DIRTYPE), []),
    "a device": (block("d.jpg", b"", type=tarfile.CHRTYPE), [("d", "unreadable", None)]),
    "a pipe": (block("d.txt", b"", type=tarfile.FIFOTYPE), [("d", None, "unreadable")]),
    "a hard link": (block("d.jpg", b"", type=tarfile.LNKTYPE, linkname="0.jpg"), [("d", "unreadable", None)]),
    "a symbolic link": (block("d.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), [("d", "unreadable", None)]),
    "a link that nobody wants": (block("d.npy", b"", type=tarfile.SYMTYPE, linkname="x"), [("d", None, None)]),
    "an absolute name": (block("/etc/d.npy", b"1"), [("/etc/d", None, None)]),
    "a climbing name": (block("../../d.npy", b"1"), [("../../d", None, None)]),
    "a name of other bytes": (block("d\udcff.npy", b"1"), [("d\ufffd", None, None)]),
    "no name": (raw("", b""), [("", None, None)]),
    "a name of dots": (block("x/..npy", b"1"), []),
    "a long name": (block("d" * 3000 + ".npy", b"1"), [("d" * 3000, None, None)]),
    "an unknown type": (raw("d.npy", b"123", kind=b"Z"), [("d", None, None)]),
    "a sparse member of nothing": (
        raw("d.npy", b"", size=b"%011o\0" % 0, kind=b"S"),
        [("d", None, None)],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_oddity_that_is_not_damage_costs_no_other_sample(name, tmp_path):
    data, expected = ODD[name]
    keys, rows, errors = rows_around(tmp_path, data)
    assert not errors and keys == ["0", "1", *(key for key, _, _ in expected), "2", "3"]
    found = [
        (row["key"], *(row[f"{m}_reject"] and row[f"{m}_reject"]["reason"] for m in ("image", "caption")))
        for row in rows[2 : 2 + len(expected)]
    ]
    assert found == expected


def test_pax_headers_override_names_and_sizes(tmp_path):
    long = "p/" + "n" * 300
    data = pax([(f"{long}.jpg", picture(7), {"comment": "x" * 20_000}), (f"{long}.txt", b"a cat", {})])
    keys, rows, errors = rows_around(tmp_path, data)
    assert not errors and keys == ["0", "1", long, "2", "3"]
    assert (rows[2]["image"], rows[2]["caption"]) == (picture(7), "a cat")


def test_a_pax_size_is_the_one_that_counts(tmp_path):
    body = b"a caption of so many bytes"
    record = b"%d size=%d\n" % (len(b"11 size=26\n"), len(body))
    data = raw("h", record, kind=b"x") + raw("d.txt", body, size=b"%011o\0" % 0)
    keys, rows, errors = rows_around(tmp_path, data)
    assert not errors and keys == ["0", "1", "d", "2", "3"] and rows[2]["caption"] == body.decode()


@pytest.mark.parametrize("length", [b"99", b"0", b"-3", b"1", b""])
def test_a_pax_header_that_lies_about_its_length_hangs_nothing(length, tmp_path):
    """Later releases of Python treat more of them as damage than earlier ones."""
    keys, _, errors = rows_around(tmp_path, raw("h", length + b" path=aa\n", kind=b"x") + raw("9.npy", b""))
    assert keys[:2] == ["0", "1"] and (errors or keys[-2:] == ["2", "3"])


def test_a_global_pax_header_is_no_member(tmp_path):
    keys, _, errors = rows_around(tmp_path, raw("pax_global_header", b"20 comment=abcdefgh\n", kind=b"g"))
    assert not errors and keys == ["0", "1", "2", "3"]


def sparse(data_places, size, body, name="d.jpg"):
    """Return a GNU sparse member: pieces of data at given places of a file that is zero elsewhere."""
    header = bytearray(block(name, b"")[:512])
    header[124:136] = b"%011o\0" % len(body)
    header[156:157] = b"S"
    for i, (offset, length) in enumerate(data_places):
        header[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, length)
    header[483:495] = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    header[257:265] = b"ustar  \0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + body + b"\0" * (-len(body) % 512)


def test_a_sparse_member_is_read_whole(tmp_path):
    data = sparse([(0, 4), (10, 2)], 20, b"abcdef")
    keys, rows, errors = rows_around(tmp_path, data)
    assert not errors and keys == ["0", "1", "d", "2", "3"]
    assert rows[2]["image"] == b"abcd" + b"\0" * 6 + b"ef" + b"\0" * 8


def test_a_sparse_member_of_a_terabyte_is_a_reject_and_takes_no_memory(tmp_path):
    keys, rows, errors = rows_around(tmp_path, sparse([(0, 4)], (1 << 33) - 1, b"abcd"))
    assert not errors and keys == ["0", "1", "d", "2", "3"]
    assert rows[2]["image_reject"]["reason"] == "image too large"


def test_sizes_that_add_up_beyond_all_numbers_are_one_reject(tmp_path):
    """Sparse members may claim any size without taking space."""
    odd = b"".join(sparse([(0, 4)], 1 << 62, b"abcd", name) for name in ("d.jpg", "d.png"))
    keys, rows, errors = rows_around(tmp_path, odd)
    assert not errors and keys == ["0", "1", "d", "2", "3"]
    assert (
        rows[2]["image_reject"]["reason"] == "several images" and rows[2]["image_reject"]["num_bytes"] == (1 << 63) - 1
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize("places", [[(100, 10), (0, 10)], [(0, 1 << 30)], [(1 << 30, 1)]], ids=str)
def test_a_wrong_sparse_map_hangs_nothing(places, tmp_path):
    keys, _, errors = rows_around(tmp_path, sparse(places, 2000, b"abcd"))
    assert keys[:2] == ["0", "1"] and len(errors) <= 1


@pytest.mark.parametrize("cut", [0, 1, 10, 11, 30, 200, 700, -9, -8, -4, -1])
def test_a_gzip_that_ends_early_gives_what_it_holds(cut, tmp_path):
    plain = open(make_tar(tmp_path / "plain", 4), "rb").read()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain)[:cut])
    rows, _, errors = read(tmp_path / "a.tar.gz", tmp_path)
    (error,) = errors
    assert error[0] == "unreadable" and f"after {len(rows)} samples" in error[1]
    assert [row["image"] for row in rows[:-1]] == [picture(i) for i in range(len(rows))][:-1]
    assert len(rows) == 4 if cut < 0 else len(rows) < 4


def test_a_flipped_bit_in_a_gzip_is_found_by_its_checksum(tmp_path):
    plain = open(make_tar(tmp_path / "plain", 4), "rb").read()
    data = bytearray(gzip.compress(plain, 0))  # stored: the tar itself looks whole
    data[data.index(picture(2)) + 300] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(data)
    rows, _, errors = read(tmp_path / "a.tar.gz", tmp_path)
    assert len(rows) == 4 and len(errors) == 1 and "CRC" in errors[0][1]


def test_bytes_after_a_gzip_are_an_error(tmp_path):
    plain = open(make_tar(tmp_path / "plain", 2), "rb").read()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain) + b"garbage")
    rows, _, errors = read(tmp_path / "a.tar.gz", tmp_path)
    assert len(rows) == 2 and len(errors) == 1


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 511, b"PAR1", b"\x28\xb5\x2f\xfd" + b"x" * 600], ids=len)
def test_a_file_that_is_not_a_tar_is_one_error(data, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    rows, _, errors = read(tmp_path / "a.tar", tmp_path)
    assert not rows and len(errors) == 1 and errors[0][0] == "unreadable"


def test_a_caption_of_fifty_megabytes_with_nul_and_marks(tmp_path):
    members = [
        ("a.txt", b"x" * (50 << 20)),
        ("b.txt", b"a\0b"),
        ("c.txt", b"\xef\xbb\xbf\xef\xbb\xbftwice"),
        ("d.txt", "utf-16".encode("utf-16")),
        ("e.json", b'{"caption": "\\u0000"}'),
        ("f.json", b"\xef\xbb\xbf" + b'{"caption": "marked"}'),
    ]
    rows, _, errors = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    found = [row["caption"] or row["caption_reject"]["reason"] for row in rows]
    assert not errors and found == ["caption too large", "a\0b", "\ufefftwice", "not UTF-8", "\0", "marked"]


@pytest.mark.parametrize("cut", range(0, 12_000, 271))
def test_a_cut_anywhere_is_one_shard_reject_and_the_counts_balance(cut, tmp_path):
    """This tests the reader alone; a run over some cuts is below."""
    members = [m for i in range(3) for m in pair(f"{i}", i, json=b'{"a": 1}', cls=b"3")]
    data = open(write_tar(tmp_path / "whole.tar", members), "rb").read()
    (tmp_path / "a.tar").write_bytes(data[:cut])
    rows, _, errors = read(tmp_path / "a.tar", tmp_path, ReaderOptions())
    if cut >= len(data.rstrip(b"\0")) + 1024:
        assert not errors and len(rows) == 3
        return
    (error,) = errors
    assert error[0] == "unreadable"
    for i, row in enumerate(rows[:-1]):
        assert (row["image"], row["caption"], row["metadata"]) == (picture(i), f"picture number {i}", '{"a": 1}')
    whole = sum(data.index(f"{i}.cls".encode()) + 1024 <= cut for i in range(3))
    assert whole <= len(rows) <= whole + 1


@pytest.mark.parametrize("cut, whole", [(700, 0), (2500, 1), (4100, 2)])
def test_a_run_over_a_truncated_tar_embeds_the_samples_before_the_cut(cut, whole, tmp_path, embed):
    data = open(make_tar(tmp_path / "whole", 4), "rb").read()
    (tmp_path / "a.tar").write_bytes(data[:cut])
    out = tmp_path / "out"
    embed(tmp_path / "a.tar", output=out, flags=["--max_reject_fraction", "1"], code=3)
    shard = [row for row in rows_of(out, "rejects") if row["modality"] == "shard"]
    (reject,) = shard
    assert (reject["stage"], reject["reason"], reject["row"]) == ("read", "unreadable", None)
    assert [row["image_embedding"] is not None for row in rows_of(out)] == [True] * whole


def test_tarfile_accepts_the_headers_that_these_tests_write():
    """Otherwise the tests above would prove nothing."""
    with tarfile.open(fileobj=io.BytesIO(raw("a.txt", b"hello") + END)) as tar:
        assert tar.extractfile("a.txt").read() == b"hello" and struct.calcsize("512s") == 512
