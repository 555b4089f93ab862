"""Listings: every row is a sample, in order; memory does not grow with their length."""

import json
import threading
import tracemalloc

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tar, picture, rows_of, write_tar
from reading import read

from clip_transforms.shards import cut_listing, fetch_ahead, lines
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column

ROWS = [("a.jpg", "a cat"), ("sub/b.jpg", "a dog, red"), ("", 'she said "hi"'), ("c.jpg", None), (None, "two\nlines")]


def pictures(folder, names=("a.jpg", "sub/b.jpg", "c.jpg")):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))


def write_csv(path, delimiter=","):
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["uri", "caption"], *ROWS])
    return path


def write_jsonl(path):
    path.write_text("\n".join(json.dumps({"uri": uri, "caption": caption}) for uri, caption in ROWS))
    return path


def write_parquet(path):
    pq.write_table(pa.table({"uri": [r[0] for r in ROWS], "caption": [r[1] for r in ROWS]}), path, row_group_size=2)
    return path


WRITERS = {
    "csv": lambda folder: write_csv(folder / "l.csv"),
    "tsv": lambda folder: write_csv(folder / "l.tsv", "\t"),
    "jsonl": lambda folder: write_jsonl(folder / "l.jsonl"),
    "parquet": lambda folder: write_parquet(folder / "l.parquet"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_every_kind_of_listing_gives_the_same_rows(kind, batch_size, tmp_path):
    pictures(tmp_path)
    rows, notes, errors = read(WRITERS[kind](tmp_path), tmp_path, batch_size=batch_size)
    assert not errors and not notes
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4] and [row["key"] for row in rows] == list("01234")
    assert [row["image"] for row in rows] == [picture(0), picture(1), None, picture(2), None]
    assert [row["caption"] for row in rows] == ["a cat", "a dog, red", 'she said "hi"', None, "two\nlines"]
    assert all(row["image_reject"] is None and row["caption_reject"] is None for row in rows)
    assert json.loads(rows[1]["metadata"]) == {"uri": "sub/b.jpg"}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_listing_on_another_file_system_gives_the_same_rows(kind, tmp_path):
    pictures(tmp_path / "in")
    WRITERS[kind](tmp_path / "in")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "in"), "/listed", recursive=True)
    try:
        rows, _, _ = read(f"memory://listed/l.{kind}", tmp_path)
        assert [row["image"] for row in rows] == [picture(0), picture(1), None, picture(2), None]
    finally:
        memory.rm("/listed", recursive=True)


def test_a_listing_without_uris_is_captions_only(tmp_path, embed):
    (tmp_path / "l.csv").write_text("TEXT,n\na cat,1\na dog,2\n")
    rows, _, _ = read(tmp_path / "l.csv", tmp_path, ReaderOptions(columns=(Column("n", "n", "int8"),)))
    assert [(row["image"], row["caption"], row["n"]) for row in rows] == [(None, "a cat", 1), (None, "a dog", 2)]
    embed(tmp_path / "l.csv", output=tmp_path / "out")
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["a cat", "a dog"]


def test_a_reject_of_an_image_names_its_uri_and_no_query(tmp_path, embed):
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    (tmp_path / "large.jpg?token=SECRET").write_bytes(b"x" * 70_000)
    (tmp_path / "empty.jpg?token=SECRET").write_bytes(b"")
    (tmp_path / "l.csv").write_text(
        "uri,caption\nbroken.jpg,a\nlarge.jpg?token=SECRET,b\nempty.jpg?token=SECRET,c\ngone.jpg,d\n"
    )
    flags = ["--max_image_bytes", 60_000, "--max_reject_fraction", 1]
    embed(tmp_path / "l.csv", output=tmp_path / "out", flags=flags)
    found = {row["reason"]: row["message"] for row in rows_of(tmp_path / "out", "rejects")}
    assert set(found) == {"unknown format", "image too large", "empty", "not fetched"}
    assert found["unknown format"].startswith("broken.jpg: ") and found["not fetched"].startswith("gone.jpg: ")
    assert found["image too large"].startswith("large.jpg: ") and found["empty"].startswith("empty.jpg: ")
    assert "SECRET" not in "".join(found.values())


def test_a_reject_of_a_picture_in_a_tar_has_its_shard_and_key_and_needs_no_uri(tmp_path, embed):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"<html>")])
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--max_reject_fraction", 1], code=3)
    (row,) = rows_of(tmp_path / "out", "rejects")
    assert row["key"] == "a" and "a.jpg" not in row["message"]


def test_keys_and_columns_by_flag_and_by_name(tmp_path):
    pictures(tmp_path)
    (tmp_path / "l.jsonl").write_text('{"uid": "x", "pic": "a.jpg", "alt": ["one", "two"], "url": "no"}\n{"uid": 7}\n')
    options = ReaderOptions(image_column="pic", caption_column="alt[1]", columns=(Column("url", "url"),))
    first, second = read(tmp_path / "l.jsonl", tmp_path, options)[0]
    assert (first["key"], first["image"], first["caption"], first["url"]) == ("x", picture(0), "two", "no")
    assert json.loads(first["metadata"]) == {"pic": "a.jpg"}
    assert (second["key"], second["image"], second["caption"], second["metadata"]) == ("7", None, None, None)


def test_a_key_of_the_csv_named_by_flag(tmp_path):
    (tmp_path / "l.csv").write_text("caption,id\na cat,one\na dog,\n")
    rows, _, _ = read(tmp_path / "l.csv", tmp_path, ReaderOptions(key_column="id"))
    assert [row["key"] for row in rows] == ["one", "1"]


def test_large_images_are_fetched_up_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_ahead, "_SMALL", 1000)
    for name, size in (("small", 1000), ("large", 5000), ("limit", 6000), ("over", 6001)):
        (tmp_path / f"{name}.jpg").write_bytes(b"x" * size)
    (tmp_path / "l.csv").write_text("uri\nover.jpg\nlarge.jpg\nlimit.jpg\nsmall.jpg\n")
    rows, _, _ = read(tmp_path / "l.csv", tmp_path, ReaderOptions(max_image_bytes=6000))
    assert [len(row["image"] or b"") for row in rows] == [0, 5000, 6000, 1000]
    assert rows[0]["image_reject"]["reason"] == "image too large"


def test_planning_and_reading_a_long_listing_take_no_more_memory_than_a_short_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cut_listing, "ROWS_PER_UNIT", 1_000)
    monkeypatch.setattr(lines, "BLOCK", 1 << 16)

    def peak(count):
        with open(tmp_path / "l.csv", "w") as file:
            file.write("caption,n\n")
            for i in range(count):
                file.write(f"picture number {i},{'x' * 100}\n")
        tracemalloc.start()
        try:
            plan = take_inventory([str(tmp_path / "l.csv")], ReaderOptions())
            (rows,) = plan.side_files.values()
            assert sum(table.num_rows for table in rows.tables({u.part for u in plan.units})) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1_000)  # what is imported at first use is not counted
    assert peak(15_000) < 1.1 * peak(5_000)


def test_several_images_are_fetched_at_a_time_and_rows_keep_their_order(tmp_path, monkeypatch):
    names = [f"{i:03d}.jpg" for i in range(200)]
    pictures(tmp_path, names)
    (tmp_path / "l.csv").write_text("\n".join(["uri", *names]))
    running, most, lock = [], [], threading.Lock()
    original = fetch_ahead.fetch_image

    def slow(text, *args):
        with lock:
            running.append(text)
            most.append(len(running))
        threading.Event().wait(0.02 if int(text[:3]) % 7 == 0 else 0.001)
        try:
            return original(text, *args)
        finally:
            with lock:
                running.remove(text)

    monkeypatch.setattr(fetch_ahead, "fetch_image", slow)
    rows, _, _ = read(tmp_path / "l.csv", tmp_path)
    assert [row["image"] for row in rows] == [picture(i) for i in range(200)]
    assert 1 < max(most) <= 16


def test_tars_come_before_pictures_and_pictures_before_listings(tmp_path):
    pictures(tmp_path)
    (tmp_path / "l.csv").write_text("caption\na\n")
    found = take_inventory([str(tmp_path)], ReaderOptions())
    assert found.formats == {"folder"}
    assert found.detection[0] == f"{tmp_path}: a folder of 3 pictures; not read: 1 listing (--input_format listing)"
    assert take_inventory([str(tmp_path)], ReaderOptions(input_format="listing")).formats == {"listing"}
    (tmp_path / "t").mkdir()
    make_tar(tmp_path / "t" / "a.tar", 1)
    (tmp_path / "t" / "l.csv").write_text("caption\na\n")
    assert take_inventory([str(tmp_path / "t")], ReaderOptions()).formats == {"webdataset"}
    (tmp_path / "u").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "u" / name).write_text("caption\na\n" if name == "a.csv" else '{"caption": "a"}')
    found = take_inventory([str(tmp_path / "u"), str(tmp_path / "u" / "a.csv"), f"{tmp_path}/u/*.csv"], ReaderOptions())
    assert [unit.format for unit in found.units] == ["listing", "listing"]
    assert found.detection[0] == f"{tmp_path / 'u'}: 2 listings"


def test_a_listing_whose_uris_all_point_elsewhere_is_warned_of_before_the_run(tmp_path):
    (tmp_path / "l.csv").write_text("url,caption\nhttps://example.com/a.jpg?token=secret,a\nhttps://example.com/b,b\n")
    found = take_inventory([str(tmp_path / "l.csv")], ReaderOptions())
    assert found.detection[1] == (
        f"warning: {tmp_path}/l.csv: the first images cannot be fetched: https://example.com/a.jpg lies outside the "
        "listing's folder; --allow_uri permits more"
    )
    allowed = ReaderOptions(allow_uri=("https://example.com/",))
    assert len(take_inventory([str(tmp_path / "l.csv")], allowed).detection) == 1
