"""One picture at a time, in any order and by several threads: what a server that shows a dataset asks for."""

import concurrent.futures
import gzip
import hashlib
import io
import os
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, write_tar
from test_read_again import SOURCES, a_csv, a_folder, a_parquet_file, a_tar, embedded

from clip_transforms import storage
from clip_transforms.shards import read_again, tar_index
from clip_transforms.shards.read_again import Sources
from clip_transforms.shards.unit import ReaderOptions


def asked_for(found):
    """[(part, shard, wanted, picture)] of all rows."""
    return [(part, shard, *row) for (part, shard), rows in found.items() for row in rows]


def one(sources, part, shard, wanted, *_):
    found = sources.picture(part, shard, wanted)
    assert found.row == wanted.row and (found.image is None) == bool(found.lost)
    return found.image or found.lost


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def gnu_and_pax(path):
    """Long names in both ways of writing them, and a global header."""
    for name, format_ in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        with tarfile.open(path / f"{name}.tar", "w", format=format_, pax_headers={"comment": "all of them"}) as tar:
            for i in range(5):
                for member, content in pair(f"{'long/' * 40}ü{i}", i):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return [path]


def odd_samples(path):
    """Samples without a picture, with several, with one too large, with a link, a bare name; dot files and folders."""
    members = [
        *pair("a", 0),
        ("b.txt", b"no picture"),
        ("c.jpg", picture(1)),
        ("c.png", picture(2, format_="PNG")),
        (".hidden", b""),
        ("d.jpg", picture(3, (400, 400), "BMP")),
        ("e.seg.png", picture(4, format_="PNG")),
        ("e.txt", b"words"),
        ("f", picture(5)),
        ("g.json", b"{}"),
        ("g.jpg", picture(6)),
        ("h.jpg", b""),
        ("a.jpg", picture(7)),
    ]
    with tarfile.open(path / "s.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            if name == "c.png":
                link, folder = tarfile.TarInfo("l.jpg"), tarfile.TarInfo("folder")
                link.type, link.linkname, folder.type = tarfile.SYMTYPE, "a.jpg", tarfile.DIRTYPE
                tar.addfile(link)
                tar.addfile(folder)
    return [path]


def sparse(path):
    """A picture with a hole, as GNU tar writes it: its bytes in the tar are fewer than its size."""
    hole = picture(0) + bytes(20_000)
    kept = -(-len(picture(0)) // 512) * 512
    info = tarfile.TarInfo("000001.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, kept
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, kept)
    header[410:434] = b"%011o\0%011o\0" % (len(hole), 0)
    header[483:495] = b"%011o\0" % len(hole)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    first, last = io.BytesIO(), io.BytesIO()
    for buffer, key in ((first, 0), (last, 2)):
        write_tar(path / "s.tar", pair(f"{key:06d}", key))
        buffer.write((path / "s.tar").read_bytes().rstrip(b"\0"))
        buffer.write(bytes(-buffer.tell() % 512))
    (path / "s.tar").write_bytes(first.getvalue() + header + hole[:kept] + last.getvalue() + bytes(10_240))
    return [path]


@pytest.mark.parametrize(
    "source", [*SOURCES[:-1], gnu_and_pax, odd_samples, sparse], ids=lambda source: source.__name__
)
def test_any_row_of_any_source_is_read_in_any_order_and_again(source, data, scratch):
    options = ReaderOptions(max_image_bytes=400_000)
    rows = asked_for(embedded(source(data), scratch, options))
    assert len(rows) >= 2
    random.Random(1).shuffle(rows)
    with Sources(options) as sources:
        for row in rows + rows[::-1]:
            assert one(sources, *row) == row[3]


def test_paths_that_begin_above_their_parquet_file_are_found_where_the_reader_permits_it(data, scratch):
    """As `datasets` writes them: relative to a folder above the file, which was the input."""
    for folder in ("train", "pictures"):
        (data / folder).mkdir()
    (data / "pictures" / "a.jpg").write_bytes(picture(0))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "pictures/a.jpg"}, {"bytes": picture(1), "path": "b.jpg"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), data / "train" / "0.parquet")
    found = asked_for(embedded([data], scratch))
    for allowed, first in ((str(data), picture(0)), (f"{data}/", picture(0)), (f"{data}/pict", "not fetched")):
        with Sources(ReaderOptions(allow_uri=(allowed,))) as sources:
            assert [one(sources, *row) for row in found] == [first, picture(1)]


def test_rows_are_counted_as_they_were_embedded(data, scratch):
    rows = asked_for(embedded(odd_samples(data), scratch, ReaderOptions(max_image_bytes=400_000)))
    assert [wanted.key for _, _, wanted, _ in rows] == ["a", "e", "f", "g", "a"]
    assert [wanted.row for _, _, wanted, _ in rows] == [0, 5, 6, 7, 9]
    part, shard, wanted, _ = rows[0]
    with Sources(ReaderOptions(max_image_bytes=400_000)) as sources:  # rows without a picture, known and not yet known
        for row in (1, 2, 3, 4, 8, 10, 1, 2):
            assert one(sources, part, shard, wanted._replace(row=row)) == "changed"


def test_the_chosen_extension_decides_which_of_several_pictures_is_read(data, scratch):
    options = ReaderOptions(image_extension="png")
    rows = asked_for(embedded(odd_samples(data), scratch, options))
    assert [wanted.key for _, _, wanted, _ in rows] == ["c"]
    with Sources(options) as sources:
        assert one(sources, *rows[0]) == rows[0][3] == picture(2, format_="PNG")


def test_of_a_tar_only_headers_and_the_wanted_pictures_are_read(data, scratch, monkeypatch):
    large = [(f"{i:06d}.bmp", picture(i, (200, 200), "BMP")) for i in range(20)]
    write_tar(data / "s.tar", large)
    rows = asked_for(embedded([data], scratch))
    taken = []
    real = storage.open_input

    def counting(uri):
        file = real(uri)

        class Counting(io.RawIOBase):
            def read(self, size=-1):
                taken.append(found := file.read(size))
                return found

            def seek(self, offset, whence=0):
                return file.seek(offset, whence)

            def tell(self):
                return file.tell()

        return Counting()

    monkeypatch.setattr(storage, "open_input", counting)
    with Sources(ReaderOptions()) as sources:
        assert one(sources, *rows[-1]) == rows[-1][3]
        assert sum(map(len, taken)) < len(rows[-1][3]) + 40 * 1024
        taken.clear()
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        assert not taken  # their places are known


@pytest.mark.parametrize("source", [a_tar, a_parquet_file, a_csv, a_folder], ids=lambda source: source.__name__)
def test_a_source_that_is_gone_and_comes_back_is_named_and_then_shown(source, data, scratch, tmp_path):
    rows = asked_for(embedded(source(data), scratch))
    with Sources(ReaderOptions()) as sources:
        for _ in range(2):
            assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
            data.rename(tmp_path / "away")
            # The rows of a listing are remembered; its pictures are gone.
            assert {one(sources, *row) for row in rows} <= {"vanished", "not fetched"}
            (tmp_path / "away").rename(data)


def test_a_changed_source_never_shows_the_picture_of_another_sample(data, scratch):
    make_tar(data / "s.tar", 6)
    make_parquet(data / "p.parquet", 6, first=10)
    rows = asked_for(embedded([data / "s.tar"], scratch)) + asked_for(embedded([data / "p.parquet"], scratch))
    with Sources(ReaderOptions()) as sources:
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        # Samples moved by one place, the same number of bytes, and the same time: the digest tells.
        stamp = os.stat(data / "s.tar").st_mtime_ns
        write_tar(data / "s.tar", [m for i in (1, 2, 3, 4, 5, 0) for m in pair(f"{i:06d}", i)])
        os.utime(data / "s.tar", ns=(stamp, stamp))
        make_parquet(data / "p.parquet", 6, first=11)
        assert {one(sources, *row) for row in rows} <= {"changed", "unreadable"}
        # Longer captions moved the members; the rows are what they were, and an index made anew finds them.
        write_tar(data / "s.tar", [m for i in range(6) for m in pair(f"{i:06d}", i, "words " * 1_000)])
        make_parquet(data / "p.parquet", 6, first=10)
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]


def test_a_listing_that_changed_is_read_anew_once_its_pictures_are_not_found(data, scratch):
    rows = asked_for(embedded(a_csv(data), scratch))
    with Sources(ReaderOptions()) as sources:
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        (data / "photos").rename(data / "moved")
        assert [one(sources, *row) for row in rows] == ["not fetched", "not fetched"]
        (data / "l.csv").write_text((data / "l.csv").read_text().replace("photos", "moved"))
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        (data / "moved" / "000000.jpg").write_bytes(picture(2))
        assert [one(sources, *row) for row in rows] == ["changed", rows[1][3]]


def test_the_temporary_folder_of_listings_goes_with_the_sources(data, scratch, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows = asked_for(embedded(a_csv(data), scratch))
    with Sources(ReaderOptions()) as sources:
        assert one(sources, *rows[0]) == rows[0][3] and os.listdir(tmp_path / "temporary")
    assert os.listdir(tmp_path / "temporary") == []


def test_the_fence_of_a_listing_holds_for_a_server_too(listed, tmp_path, scratch):
    (listed / "l.csv").write_text(f"image\na.jpg\n{tmp_path}/secret.jpg\n")
    rows = asked_for(embedded([listed / "l.csv"], scratch, ReaderOptions(allow_uri=(str(tmp_path),))))
    with Sources(ReaderOptions()) as sources:
        assert [one(sources, *row) for row in rows] == [b"inside", "not allowed"]


def test_damage_costs_the_rows_behind_it_alone(data, scratch):
    rows = asked_for(embedded([make_tar(data / "s.tar", 6)], scratch))
    whole = (data / "s.tar").read_bytes()
    place = whole.index(b"000003.txt")
    (data / "s.tar").write_bytes(whole[:place] + b"\xff" * 512 + whole[place + 512 :])
    with Sources(ReaderOptions()) as sources:
        for _ in range(2):
            found = [one(sources, *row) for row in rows]
            assert found == [*(picture(i) for i in range(4)), "unreadable", "unreadable"]
        (data / "s.tar").write_bytes(whole)
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]


def test_threads_share_the_sources_and_each_gets_its_picture(data, scratch):
    make_tar(data / "a.tar", 30)
    (data / "b.tar.gz").write_bytes(gzip.compress((data / "a.tar").read_bytes()))
    make_tar(data / "c.tar", 30, first=30)
    make_parquet(data / "p.parquet", 30, first=60)
    make_folder(data / "photos", 10, first=90)
    (data / "l.csv").write_text("image\n" + "".join(f"photos/{i:06d}.jpg\n" for i in range(90, 100)))
    places = ("a.tar", "b.tar.gz", "c.tar", "p.parquet", "photos", "l.csv")
    rows = [row for place in places for row in asked_for(embedded([data / place], scratch))]
    random.Random(0).shuffle(rows)
    with Sources(ReaderOptions()) as sources, concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: one(sources, *row), rows, timeout=60))
    assert found == [row[3] for row in rows]


def test_two_readers_of_one_tar_do_not_wait_for_each_other(data, scratch):
    """Each has read one picture and not yet asked for the next, in one thread: with a lock held it would never end."""
    ((place, rows),) = embedded([make_tar(data / "s.tar", 6)], scratch).items()
    wanted = [one for one, _ in rows]
    with Sources(ReaderOptions()) as sources:
        readers = [sources.pictures(*place, wanted) for _ in range(2)]
        assert [[next(reader).image for reader in readers] for _ in wanted] == [[image] * 2 for _, image in rows]


def test_what_is_remembered_is_bounded(data, scratch, monkeypatch):
    rows = [row for i in range(4) for row in asked_for(embedded([make_tar(data / f"{i}.tar", 5, 5 * i)], scratch))]
    for name, most in (("_MOST_SOURCES", 2), ("_MOST_ROWS", 9)):
        with monkeypatch.context() as patch, Sources(ReaderOptions()) as sources:
            patch.setattr(read_again, name, most)
            for row in rows + rows[::-1]:
                assert one(sources, *row) == row[3]
                assert len(sources._known) <= 2


def test_no_file_stays_open(data, scratch):
    make_folder(data / "photos", 3)
    (data / "l.csv").write_text("image\n" + "".join(f"photos/{i:06d}.jpg\n" for i in range(3)))
    places = (make_tar(data / "a.tar", 3), make_parquet(data / "p.parquet", 3, 3), data / "photos", data / "l.csv")
    rows = [row for place in places for row in asked_for(embedded([place], scratch))]
    with Sources(ReaderOptions()) as sources:
        before = len(os.listdir("/proc/self/fd"))
        assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_tar_on_an_object_store_is_walked_once_and_then_read_by_ranges(s3, data, scratch, tmp_path, monkeypatch):
    s3.fs.put(make_tar(data / "s.tar", 8), "bucket/s.tar")
    rows = asked_for(embedded(["s3://bucket/s.tar"], scratch))
    monkeypatch.setattr(tar_index, "_AHEAD", 1_000)
    cache = tmp_path / "cache"
    real, walked = tar_index.members_from, []

    def members_from(file, start, headers):
        if not isinstance(file, io.BytesIO):
            walked.append(start)
        return real(file, start, headers)

    monkeypatch.setattr(tar_index, "members_from", members_from)
    for damaged in (False, True):
        with Sources(ReaderOptions(), cache=str(cache)) as sources:
            assert one(sources, *rows[4]) == rows[4][3]
        with Sources(ReaderOptions(), cache=str(cache)) as sources:  # six rows are known, and then it goes on
            assert [one(sources, *row) for row in rows] == [row[3] for row in rows]
        assert walked == [0, 6 * 5 * 512]
        walked.clear()
        (file,) = cache.iterdir()
        if not damaged:
            file.write_bytes(file.read_bytes()[:100])
    with Sources(ReaderOptions(), cache=str(cache)) as sources:
        s3.seen.clear()
        assert one(sources, *rows[-1]) == rows[-1][3]
        assert sum(method == "GET" for method, *_ in s3.seen) == 2  # the first bytes of the tar, and the picture
        s3.fs.put(make_tar(data / "other.tar", 8, first=1), "bucket/s.tar")
        assert {one(sources, *row) for row in rows} == {"changed"}
        s3.fs.rm("bucket/s.tar")
        assert {one(sources, *row) for row in rows} == {"vanished"}


def test_a_picture_of_the_same_key_with_other_bytes_is_no_longer_it(data, scratch):
    rows = asked_for(embedded([make_tar(data / "s.tar", 2)], scratch))
    part, shard, wanted, _ = rows[0]
    assert wanted.sha256 == hashlib.sha256(picture(0)).hexdigest()
    with Sources(ReaderOptions()) as sources:
        assert one(sources, part, shard, wanted._replace(sha256="0" * 64)) == "changed"


def test_a_source_that_another_thread_has_opened_anew_meanwhile_is_asked_once_more(data, scratch, monkeypatch):
    """A thread reads the old places; before it can look why nothing is there, another one has found the new places."""
    members = [member for i in range(3) for member in pair(f"{i:06d}", i)]
    write_tar(data / "a.tar", members)
    first, second, _ = asked_for(embedded([data], scratch))
    reads = []
    with Sources(ReaderOptions()) as sources:
        assert one(sources, *first) == first[3]  # from here on the old places are known
        write_tar(data / "a.tar", [(".hidden", b"x" * 5_000), *members])
        original = sources.pictures

        def read(*arguments):
            found = list(original(*arguments))
            reads.append(found[0].lost)
            if len(reads) == 1:
                assert one(sources, *second) == second[3]  # the other thread, from its beginning to its end
            return iter(found)

        monkeypatch.setattr(sources, "pictures", read)
        assert one(sources, *first) == first[3]
        assert reads[0] == "changed" and reads[-1] == ""
        lost = first[2]._replace(sha256="0" * 64)
        reads[:] = ["not the first"]
        assert one(sources, *first[:2], lost) == "changed" and len(reads) == 2, "nothing is new, so it is read once"
