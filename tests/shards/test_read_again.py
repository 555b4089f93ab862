"""Pictures of a dataset are read again from every kind of source, and only the very bytes that were embedded."""

import hashlib
import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, write_tar
from reading import write_side_files
from tfrecords import write_tfrecord

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.listings_again import write_listings
from clip_transforms.shards.read_again import read_again
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.shards.wanted import Wanted


def embedded(inputs, scratch, options=None):
    """What a dataset would know of its rows with pictures: (part, shard) → wanted rows, and row → picture."""
    options = options or ReaderOptions()
    inventory = take_inventory([str(place) for place in inputs], options)
    write_side_files(inventory, scratch)
    found = {}
    for unit in inventory.units:
        rows = [r for b in read_unit(unit, options, 3, Counter(), str(scratch)) for r in b.to_pylist() if r["image"]]
        found[unit.part, unit.shard] = [
            (Wanted(row["row"], row["key"], hashlib.sha256(row["image"]).hexdigest()), row["image"]) for row in rows
        ]
    return found


def read_all(found, options=None, folder=""):
    """Read everything again: key → picture, or why it is lost; a list where rows share a key."""
    outcome = {}
    for (part, shard), rows in found.items():
        wanted = [one for one, _ in rows]
        read = list(read_again(part, shard, wanted, options or ReaderOptions(), folder))
        assert [one.row for one in read] == [one.row for one in wanted]
        for one, found_again in zip(wanted, read, strict=True):
            outcome.setdefault(one.key, []).append(found_again.image or found_again.lost)
    return {key: values[0] if len(values) == 1 else values for key, values in outcome.items()}


def expected(found):
    images = {}
    for one, image in (row for rows in found.values() for row in rows):
        images.setdefault(one.key, []).append(image)
    return {key: values[0] if len(values) == 1 else values for key, values in images.items()}


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def a_tar(path):
    return [make_tar(path / "s.tar", 7)]


def a_compressed_tar(path):
    import gzip

    make_tar(path / "plain", 4)
    (path / "s.tar.gz").write_bytes(gzip.compress((path / "plain").read_bytes()))
    return [path / "s.tar.gz"]


def a_tfrecord(path):
    write_tfrecord(path / "s.tfrecord", [{"key": f"{i}", "jpg": picture(i), "txt": "words"} for i in range(4)])
    return [path / "s.tfrecord"]


def a_parquet_file(path):
    return [make_parquet(path / "s.parquet", 13)]


def parquet_recognised_by_its_bytes(path):
    pq.write_table(pa.table({"blob": [picture(0), picture(1)], "words": ["a", "b"]}), path / "s.parquet")
    return [path / "s.parquet"]


def parquet_recognised_by_its_sibling(path):
    pq.write_table(pa.table({"blob": [picture(0), picture(1)], "caption": ["a", "b"]}), path / "a.parquet")
    late = pa.array([None] * 1_500 + [picture(2)], pa.binary())
    pq.write_table(pa.table({"blob": late, "caption": ["c"] * 1_501}), path / "b.parquet")
    return [path]


def parquet_with_paths(path):
    (path / "pictures").mkdir()
    (path / "pictures" / "a.jpg").write_bytes(picture(0))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "pictures/a.jpg"}, {"bytes": picture(1), "path": "b.jpg"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), path / "s.parquet")
    return [path / "s.parquet"]


def a_folder(path):
    make_folder(path / "photos" / "in" / "side", 3)
    make_folder(path / "photos", 2, first=3)
    return [path / "photos"]


def a_folder_with_hashes(path):
    make_folder(path / "photos#1" / "a#b", 3)
    make_folder(path / "photos", 3, first=3)
    return [path / "photos#1"]


def a_glob(path):
    make_folder(path / "a" / "deep", 2)
    make_folder(path / "b" / "deep", 2, first=2)
    return [path / "*" / "deep" / "*.jpg"]


def named_pictures(path):
    make_folder(path / "photos", 5)
    return [path / "photos" / "000001.jpg", path / "photos" / "000003.jpg"]


def names_that_are_not_utf8(path):
    (path / "photos").mkdir()
    for i, name in enumerate((b"gr\xfcn.jpg", b"gr\xfbn.jpg", b"plain.jpg")):
        with open(os.path.join(os.fsencode(path / "photos"), name), "wb") as file:
            file.write(picture(i))
    return [path / "photos"]


def a_csv(path):
    make_folder(path / "photos", 3)
    (path / "l.csv").write_text("image,caption\nphotos/000000.jpg,a\n,words\nphotos/000002.jpg,c\n")
    return [path / "l.csv"]


def a_jsonl(path):
    make_folder(path / "photos", 2)
    (path / "l.jsonl").write_text('{"uri": "photos/000001.jpg"}\n\n{"uri": "photos/000000.jpg"}\n')
    return [path / "l.jsonl"]


def a_parquet_listing(path):
    make_folder(path / "photos", 3)
    pq.write_table(pa.table({"path": [f"photos/{i:06d}.jpg" for i in range(3)]}), path / "l.parquet", row_group_size=2)
    return [path / "l.parquet"]


def a_long_listing(path):
    make_folder(path / "photos", 3)
    rows = ["caption only,"] * 25_000
    for i, row in enumerate((3, 12_000, 20_001)):
        rows[row] = f"words,photos/{i:06d}.jpg"
    (path / "l.csv").write_text("\n".join(["caption,image", *rows]))
    return [path / "l.csv"]


SOURCES = [
    *(a_tar, a_compressed_tar, a_tfrecord, a_parquet_file, parquet_recognised_by_its_bytes),
    *(parquet_recognised_by_its_sibling, parquet_with_paths, a_folder, a_folder_with_hashes, a_glob, named_pictures),
    *(names_that_are_not_utf8, a_csv, a_jsonl, a_parquet_listing, a_long_listing),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("with_folder", [False, True], ids=["alone", "with side files"])
def test_every_source_gives_the_same_pictures_again(source, with_folder, tmp_path, scratch):
    (tmp_path / "data").mkdir()
    found = embedded(source(tmp_path / "data"), scratch)
    folder = tmp_path / "again"
    folder.mkdir()
    if with_folder:
        write_listings(dict(list(found)), ReaderOptions(), str(folder))
    images = expected(found)
    assert len(images) >= 2 and read_all(found, folder=str(folder) if with_folder else "") == images


@pytest.mark.parametrize("source", SOURCES[:-1], ids=lambda source: source.__name__)
def test_one_row_of_each_part_is_read_without_the_others(source, tmp_path, scratch):
    (tmp_path / "data").mkdir()
    found = embedded(source(tmp_path / "data"), scratch)
    last = {place: rows[-1:] for place, rows in found.items() if rows}
    assert last and read_all(last) == expected(last)
    assert read_all({place: [] for place in found}) == {}


def test_a_tar_is_read_no_further_than_the_last_wanted_row(tmp_path, scratch):
    path = tmp_path / "s.tar"
    found = embedded([make_tar(path, 6)], scratch)
    path.write_bytes(path.read_bytes()[: 3 * 4 * 512 * 2])  # two or three samples are left
    ((place, rows),) = found.items()
    assert read_all({place: rows[:2]}) == expected({place: rows[:2]})
    lost = read_all(found)
    assert lost["000000"] == picture(0) and lost["000005"] == "unreadable"


@pytest.mark.parametrize("source", [a_tar, a_tfrecord, a_parquet_file, a_folder, a_csv], ids=lambda s: s.__name__)
def test_a_source_that_is_gone_is_named_so(source, tmp_path, scratch):
    (tmp_path / "data").mkdir()
    found = embedded(source(tmp_path / "data"), scratch)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert set(read_all(found).values()) == {"vanished"}


def test_only_the_pictures_that_changed_are_lost(tmp_path, scratch):
    path = tmp_path / "s.tar"
    found = embedded([make_tar(path, 4)], scratch)
    members = [m for i in range(4) for m in pair(f"{i:06d}", 9 if i == 2 else i)]
    write_tar(path, members)
    os.utime(path, ns=(1, 1))
    assert read_all(found) == {**expected(found), "000002": "changed"}
    write_tar(path, members[:2])
    assert read_all(found) == {"000000": picture(0), **dict.fromkeys(("000001", "000002", "000003"), "changed")}
    write_tar(path, [m for i in range(4) for m in pair(f"{i:06d}", i, jpg=None)])
    assert set(read_all(found).values()) == {"changed"}


def test_a_new_picture_in_a_folder_loses_none_of_the_others(tmp_path, scratch):
    found = embedded(a_folder(tmp_path), scratch)
    (tmp_path / "photos" / "000000.jpg").write_bytes(picture(77))
    (tmp_path / "photos" / "000003.jpg").unlink()
    (tmp_path / "photos" / "000004.jpg").write_bytes(picture(78))
    assert read_all(found) == {**expected(found), "000003.jpg": "vanished", "000004.jpg": "changed"}


def test_a_parquet_file_that_was_written_with_other_row_groups_has_changed(tmp_path, scratch):
    found = embedded([make_parquet(tmp_path / "s.parquet", 8, row_group_size=3)], scratch)
    make_parquet(tmp_path / "s.parquet", 8, row_group_size=2)
    assert set(read_all(found).values()) == {"changed"}
    (tmp_path / "s.parquet").write_bytes(b"PAR1 no more")
    assert set(read_all(found).values()) == {"unreadable"}


def test_a_key_does_not_climb_out_of_its_folder(tmp_path, scratch):
    make_folder(tmp_path / "photos", 1)
    (tmp_path / "secret.jpg").write_bytes(picture(5))
    digest = hashlib.sha256(picture(5)).hexdigest()
    ((part, shard),) = embedded([tmp_path / "photos"], scratch)
    (found,) = read_again(part, shard, [Wanted(0, "../secret.jpg", digest)], ReaderOptions())
    assert (found.image, found.lost) == (None, "vanished")


def test_the_fence_holds_whatever_the_dataset_says(listed, tmp_path, scratch):
    listing = listed / "l.csv"
    listing.write_text(f"image\na.jpg\n{tmp_path}/secret.jpg\n")
    allowed = ReaderOptions(allow_uri=(str(tmp_path),))
    found = embedded([listing], scratch, allowed)
    assert read_all(found, allowed) == {"0": b"inside", "1": b"secret"}
    assert read_all(found) == {"0": b"inside", "1": "not allowed"}


def test_rows_of_a_listing_that_changed_are_lost_and_no_others(tmp_path, scratch):
    found = embedded(a_csv(tmp_path), scratch)
    (tmp_path / "l.csv").write_text(
        "image,caption\nphotos/000000.jpg,a\n,words\nphotos/000001.jpg,c\nphotos/no.jpg,d\n"
    )
    assert read_all(found) == {**expected(found), "2": "changed"}
    (tmp_path / "photos" / "000000.jpg").unlink()
    assert read_all(found) == {"0": "not fetched", "2": "changed"}


def test_pictures_of_unwanted_rows_are_not_fetched(tmp_path, scratch, monkeypatch):
    found = embedded(a_csv(tmp_path), scratch)
    ((place, rows),) = found.items()
    asked = []
    from clip_transforms.shards import fetch_ahead

    real = fetch_ahead.fetch_image
    monkeypatch.setattr(fetch_ahead, "fetch_image", lambda uri, *args: asked.append(uri) or real(uri, *args))
    assert read_all({place: rows[1:]}) == {"2": picture(2)} and asked == ["photos/000002.jpg"]
