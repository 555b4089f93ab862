"""embed → filter → export --as webdataset → embed again: the selected rows' embeddings, bit for bit.

The last bits of an embedding depend on the shape of its batch: on the number of pictures that went through the model
together, and on the number and length of the captions. So they are the same with `--batch_size 1`, where each goes
alone, and with any batch size where the tars hold the same batches as the source; else they differ by rounding.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_tar, pair, picture, rows_of, write_tar
from tfrecords import write_tfrecord

from clip_transforms import export_embeddings, filter_embeddings

WORDS = (
    "a cat",
    "two dogs on a red sofa",
    "\N{BYTE ORDER MARK}marked",
    "line\nbreaks\r\nhere",
    "日本語の説明",
    "a cat",
)
COMPARED = ("width", "height", "image_embedding", "caption_embedding", "caption_tokens", "clip_score")


def data_of(i):
    return picture(i, format_=("JPEG", "PNG", "WEBP", "GIF")[i % 4], mode="RGBA" if i % 4 == 1 else "RGB")


def caption_of(i):
    return None if i % 5 == 4 else WORDS[i % len(WORDS)]


def tars(path):
    for name, start in (("a", 0), ("b", 11)):  # the second has the keys of the first
        members = []
        for i in range(start, start + 11):
            key = f"dir.d/{i - start:04d}"
            fields = {"uid": f"{i:032x}", "caption": "the text goes before this", "key": "another", "n": i}
            members += [(f"{key}.jpg", data_of(i)), (f"{key}.txt", (caption_of(i) or "").encode())]
            members.append((f"{key}.json", json.dumps(fields).encode()))
        members += [("broken.jpg", data_of(0)[:99]), ("broken.txt", b"a broken picture")]
        members += [("bad.jpg", data_of(99)), ("bad.txt", b"\xff\xfe"), ("bad.json", b'{"caption": "not this one"}')]
        write_tar(path / f"{name}.tar", members)
    return path / "*.tar"


def parquet(path):
    rows = range(23)
    columns = {"jpg": [data_of(i) for i in rows], "caption": [caption_of(i) for i in rows], "n": list(rows)}
    pq.write_table(pa.table({"key": ["same"] * 23, **columns}), path / "s.parquet", row_group_size=5)
    return path / "s.parquet"


def hugging_face(path):
    rows = [{"bytes": data_of(i), "path": f"{i}.png"} for i in range(9)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "text": [[caption_of(i) or "x", "other"] for i in range(9)]})
    pq.write_table(table, path / "s.parquet")
    return path / "s.parquet"


def folder(path):
    for i in range(23):
        place = path / "photos.2024" / ("in", "in.2", ".")[i % 3] / f"IMG.{i:03d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data_of(i))
        if caption_of(i):
            place.with_suffix(".txt").write_text(caption_of(i) + "\n", newline="")
        if i % 7 == 0:  # another picture of the same stem, and its caption
            place.with_suffix(".png").write_bytes(data_of(i + 100))
    return path / "photos.2024"


def csv(path):
    import csv as module

    make_folder(path / "photos", 23)
    with open(path / "l.csv", "w", newline="") as file:
        writer = module.writer(file)
        writer.writerow(["path", "caption", "n"])
        for i in range(23):
            writer.writerow([f"photos/{i:06d}.jpg" if i % 6 != 5 else "", caption_of(i) or "", i])
    return path / "l.csv"


def tfrecords(path):
    rows = [{"key": f"k/{i}.x", "jpg": data_of(i), "txt": caption_of(i) or ""} for i in range(9)]
    write_tfrecord(path / "s.tfrecord", rows)
    return path / "s.tfrecord"


SOURCES = [tars, parquet, hugging_face, folder, csv, tfrecords]


@pytest.fixture
def round_trip(embed, tmp_path):
    """Embed, filter, export, embed again; the rows of both, in the order of the export."""

    def run(source, where, flags=(), per_shard=7):
        (tmp_path / "data").mkdir()
        inputs = source(tmp_path / "data")
        flags = ["--max_reject_fraction", 1, *flags]
        first = [*flags, "--caption_column", "text[0]"] if source is hugging_face else flags
        embed(inputs, output=tmp_path / "out", flags=first)
        kept = filter_embeddings(tmp_path / "out", tmp_path / "kept", where=where)["counts"]["kept"]
        made = export_embeddings(
            tmp_path / "out", tmp_path / "tars", "webdataset", selection=tmp_path / "kept", samples_per_shard=per_shard
        )
        assert made["counts"] == {
            "selected": kept, "exported": kept, "left_out": {}, "files": -(-kept // per_shard)
        }  # fmt: skip
        embed(tmp_path / "tars" / "shards" / "*.tar", output=tmp_path / "again", flags=flags)
        names = {}
        for part in sorted((tmp_path / "kept" / "parts").glob("*.parquet")):
            for row in pq.ParquetFile(part).read().to_pylist():
                names[row["shard"], row["row"]] = len(names)
        before = [row for row in rows_of(tmp_path / "out") if (row["shard"], row["row"]) in names]
        before.sort(key=lambda row: names[row["shard"], row["row"]])
        return before, rows_of(tmp_path / "again")

    return run


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize(
    "where",
    # A second condition takes seven seconds more.
    ["row % 3 <> 1", pytest.param("clip_score is null or clip_score > 0", marks=pytest.mark.slow)],
    ids=["rows", "score"],
)
def test_alone_each_sample_has_the_same_embeddings_again(source, where, round_trip):
    before, after = round_trip(source, where, flags=["--batch_size", 1])
    assert len(before) > 3 and len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert [old[name] for name in COMPARED] == [new[name] for name in COMPARED]
        # A picture that cannot be decoded is in the rejects, and is not exported.
        assert new["image_sha256"] == (old["image_sha256"] if old["width"] else None)
        assert (old["caption"] or "").strip() == (new["caption"] or "")
        known = json.loads(new["metadata"])
        assert (known["key"], known["caption"]) == (old["key"], old["caption"])
        assert known["clip_score"] is None or np.float32(known["clip_score"]) == np.float32(old["clip_score"])


def test_the_same_batches_have_the_same_embeddings_again(round_trip):
    """11 and 11 samples, in tars of 11 again, but for the two that cannot be embedded as pictures or captions."""
    before, after = round_trip(lambda path: make_tar(path / "a.tar", 40) and path, "row >= 0", per_shard=100)
    assert [row["image_embedding"] for row in before] == [row["image_embedding"] for row in after]
    assert [row["caption_embedding"] for row in before] == [row["caption_embedding"] for row in after]


def test_other_batches_differ_by_rounding_alone(round_trip):
    before, after = round_trip(lambda path: make_tar(path / "a.tar", 40) and path, "row % 2 = 0", per_shard=7)
    for name in ("image_embedding", "caption_embedding"):
        old, new = (np.array([row[name] for row in rows]) for rows in (before, after))
        assert np.abs(old - new).max() < 1e-6


def test_columns_of_ones_own_come_back_with_the_same_flags(round_trip):
    fields = {
        "d": "2024-01-02",
        "b": True,
        "i": 2**53 + 1,
        "f": 0.1,
        "t": "2024-01-02T03:04:05",
        "s": "ü",
        "o": {"a": [1]},
    }
    flags = ["--columns", "d:date32", "b:bool", "i:int64", "f:float32", "t:timestamp[s]", "s", "o", "--batch_size", 1]

    def source(path):
        samples = [pair("a", 0, json=json.dumps(fields).encode()), pair("b", 1, json=b"{}")]
        return write_tar(path / "a.tar", [member for sample in samples for member in sample])

    before, after = round_trip(source, "row >= 0", flags=flags)
    names = [*fields, *COMPARED]
    assert [[row[name] for name in names] for row in before] == [[row[name] for name in names] for row in after]
    assert before[0]["i"] == 2**53 + 1 and before[0]["d"] is not None and before[1]["t"] is None
