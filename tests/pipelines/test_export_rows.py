"""Export: which rows, pictures, captions, uids and columns go into which layout, here and on object stores."""

import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_tar, pair, picture, rows_of, write_tar
from exported import SAME_BYTES, captions_alone

from benchmarks.datasets import write_rows
from clip_transforms import export_embeddings
from clip_transforms.exports.plan import LAYOUTS
from pipelines import export

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


def test_pictures_that_are_lost_are_counted_and_left_out(embed, tmp_path, capsys):
    make_tar(tmp_path / "a.tar", 4)
    make_tar(tmp_path / "b.tar", 2, first=4)
    make_folder(tmp_path / "photos", 3, first=6)
    embed(tmp_path / "*.tar", tmp_path / "photos", output=tmp_path / "out")
    write_tar(tmp_path / "a.tar", [m for i in range(4) for m in pair(f"{i:06d}", 70 if i == 1 else i)])
    (tmp_path / "b.tar").unlink()
    (tmp_path / "photos" / "000007.jpg").unlink()
    argv = ["--input", str(tmp_path / "out"), "--output", str(tmp_path / "e"), "--as", "webdataset"]
    capsys.readouterr()
    assert export.main([*argv, "--samples_per_shard", "2"]) == 0
    named = f"the rows that were left out are named in {tmp_path}/e/left_out.parquet\n"
    assert capsys.readouterr().out == (
        f"9 rows = 5 exported + 1 changed + 3 vanished, in {tmp_path}/e (4 tars)\n{named}"
    )
    left_out = pq.read_table(tmp_path / "e" / "left_out.parquet").to_pylist()
    assert left_out == [
        {"key": "000001", "shard": str(tmp_path / "a.tar"), "row": 1, "reason": "changed"},
        {"key": "000004", "shard": str(tmp_path / "b.tar"), "row": 0, "reason": "vanished"},
        {"key": "000005", "shard": str(tmp_path / "b.tar"), "row": 1, "reason": "vanished"},
        {"key": "000007.jpg", "shard": f"{tmp_path}/photos#", "row": 1, "reason": "vanished"},
    ]
    stats = [json.loads(path.read_text()) for path in sorted((tmp_path / "e" / "shards").glob("*_stats.json"))]
    assert [one["count"] for one in stats] == [2, 2, 2, 2, 1]
    assert [one["successes"] for one in stats] == [1, 2, 0, 1, 1]
    assert stats[0]["status_dict"] == {"changed": 1} and stats[2]["status_dict"] == {"vanished": 2}
    assert not (tmp_path / "e" / "shards" / "00002.tar").exists(), "a tar without samples is none"
    # The same export again says the same, although the sources are back.
    make_tar(tmp_path / "b.tar", 2, first=4)
    (tmp_path / "e" / "_SUCCESS").unlink()
    assert export.main([*argv, "--samples_per_shard", "2"]) == 0
    assert "5 exported + 1 changed + 3 vanished" in capsys.readouterr().out
    (tmp_path / "e" / "left_out.parquet").unlink()
    assert export.main([*argv, "--samples_per_shard", "2"]) == 0 and capsys.readouterr().out.endswith(named)
    assert pq.read_table(tmp_path / "e" / "left_out.parquet").to_pylist() == left_out
    assert export.main([*argv, "--samples_per_shard", "1", "--overwrite"]) == 0
    make_tar(tmp_path / "a.tar", 4)
    make_folder(tmp_path / "photos", 3, first=6)
    assert export.main([*argv, "--overwrite"]) == 0 and not (tmp_path / "e" / "left_out.parquet").exists()


def two_images_a_key(path):
    write_tar(path / "a.tar", [("a.jpg", picture(0)), ("a.seg.png", picture(1, format_="PNG")), *pair("b", 2)])
    return path / "a.tar", ["--image_extension", "seg.png"], [picture(1, format_="PNG")]


def a_column_by_name(path):
    pq.write_table(pa.table({"image": [picture(0)], "other": [picture(1)], "id": ["x"]}), path / "p.parquet")
    return path / "p.parquet", ["--image_column", "other", "--key_column", "id"], [picture(1)]


def the_first_of_a_list(path):
    table = pa.table({"images": [[picture(0), picture(1)]], "text": [["one", "two"]]})
    pq.write_table(table, path / "p.parquet")
    return path / "p.parquet", ["--image_column", "images[1]", "--caption_column", "text[0]"], [picture(1)]


def left_out_by_name(path):
    make_folder(path / "photos", 3)
    make_folder(path / "photos" / "old", 2, first=5)
    return path / "photos", ["--exclude", "old", "--limit", 2], [picture(0), picture(1)]


@pytest.mark.parametrize(
    "source", [two_images_a_key, a_column_by_name, the_first_of_a_list, left_out_by_name], ids=lambda s: s.__name__
)
def test_pictures_are_read_with_the_options_that_they_were_embedded_with(source, embed, tmp_path):
    inputs, flags, pictures = source(tmp_path)
    embed(inputs, output=tmp_path / "out", flags=flags)
    assert export_embeddings(tmp_path / "out", tmp_path / "e", "webdataset")["counts"]["left_out"] == {}
    with tarfile.open(tmp_path / "e" / "shards" / "00000.tar") as tar:
        found = [tar.extractfile(m).read() for m in tar if m.name.endswith(("jpg", "png"))]
    assert found == pictures


def test_a_listing_needs_the_permission_that_it_was_embedded_with(embed, tmp_path, capsys):
    make_folder(tmp_path / "elsewhere", 2)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "l.csv").write_text(f"image\n{tmp_path}/elsewhere/000000.jpg\n../elsewhere/000001.jpg\n")
    allowed = ["--allow_uri", str(tmp_path / "elsewhere")]
    embed(tmp_path / "l" / "l.csv", output=tmp_path / "out", flags=allowed)
    argv = ["--input", str(tmp_path / "out"), "--as", "webdataset", "--output"]
    capsys.readouterr()
    assert export.main([*argv, str(tmp_path / "without")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2 rows = 0 exported + 2 not allowed, in {tmp_path}/without (0 tars)",
        "note: the export is empty",
        f"the rows that were left out are named in {tmp_path}/without/left_out.parquet",
        "note: --allow_uri permits pictures outside of a listing's folder, as when they were embedded",
    ]
    assert export.main([*argv, str(tmp_path / "with"), *allowed]) == 0
    assert capsys.readouterr().out == f"2 rows = 2 exported, in {tmp_path}/with (1 tar)\n"


EXAMPLES = [
    "ffffffffffffffff0000000000000001",
    "0000000000000001ffffffffffffffff",
    "00000000000000010000000000000002",
]


UIDS_NPY = (
    b"\x93NUMPY\x01\0v\0{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (3,), }".ljust(127)
    + b"\n"
    + bytes.fromhex("010000000000000002000000000000000100000000000000ffffffffffffffffffffffffffffffff0100000000000000")
)


@pytest.mark.parametrize("place", ["key", "metadata", "column"])
def test_uids_are_datacomps_bytes_wherever_they_stand(place, embed, tmp_path, capsys):
    members = []
    for i, uid in enumerate([*EXAMPLES, EXAMPLES[1].upper(), "no uid", "0" * 31, "g" * 32]):
        key = f"{uid}.{i}" if place == "key" else str(i)
        fields = {} if place == "key" else {"uid": uid} if place == "metadata" else {"id": uid}
        name = uid if place == "key" else key
        members += [(f"{name}.jpg", picture(i)), (f"{name}.json", json.dumps(fields).encode())]
    write_tar(tmp_path / "a.tar", members)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--columns", "uid=id"] if place == "column" else [])
    capsys.readouterr()
    argv = ["--input", str(tmp_path / "out"), "--output", str(tmp_path / "e"), "--as", "datacomp_uids"]
    assert export.main(argv) == 0
    assert (tmp_path / "e" / "datacomp" / "uids.npy").read_bytes() == UIDS_NPY
    assert capsys.readouterr().out == (
        f"7 rows = 3 exported + 1 named more than once + 3 without uid, in {tmp_path}/e (1 file)\n"
    )


def test_all_captions_go_along_a_line_each(embed, tmp_path):
    members = [("a.jpg", picture(0)), ("a.txt", b"one\ntwo\n\nthree"), ("b.jpg", picture(1))]
    write_tar(tmp_path / "a.tar", members)
    flags = ["--captions", "all", "--batch_size", 1]
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=flags)
    export_embeddings(tmp_path / "out", tmp_path / "e", "webdataset")
    with tarfile.open(tmp_path / "e" / "shards" / "00000.tar") as tar:
        assert tar.extractfile("a.txt").read() == b"one\ntwo\nthree"
        assert tar.getnames() == ["a.jpg", "a.txt", "a.json", "b.jpg", "b.json"]
    embed(tmp_path / "e" / "shards" / "*.tar", output=tmp_path / "again", flags=flags)
    for kind in ("embeddings", "captions"):
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in ("shard", "metadata")} for row in rows_of(tmp_path / out, kind)]
            for out in ("out", "again")
        )
        assert ours == theirs
    assert len(rows_of(tmp_path / "again", "captions")) == 3


def pictures_alone(path):
    return [write_tar(path / "a.tar", [(f"{i}.jpg", picture(i)) for i in range(3)])]


def some_of_each(path):
    return [write_tar(path / "a.tar", [*pair("a", 0), *pair("b", 1, jpg=None), *pair("c", 2)[:1], *pair("d", 3)])]


def no_rows(path):
    return [write_tar(path / "a.tar", pair("a", 0, jpg=b"", caption=b""))]


@pytest.mark.parametrize(
    ("source", "exported"),
    [
        (captions_alone, {"webdataset": 3, "clip_retrieval": 3, "npy": 3, "faiss": 3, "lance": 3, "datacomp_uids": 0}),
        (pictures_alone, {"webdataset": 3, "clip_retrieval": 3, "npy": 3, "faiss": 3, "lance": 3, "datacomp_uids": 0}),
        (some_of_each, {"webdataset": 4, "clip_retrieval": 2, "npy": 2, "faiss": 3, "lance": 4, "datacomp_uids": 0}),
        (no_rows, dict.fromkeys(LAYOUTS, 0)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rows_without_a_modality_go_where_the_layout_can_have_them(source, exported, embed, tmp_path):
    embed(*source(tmp_path), output=tmp_path / "out", flags=["--max_reject_fraction", 1], code=None)
    there = {}
    for layout in LAYOUTS:
        there[layout] = export_embeddings(tmp_path / "out", tmp_path / layout, layout)["counts"]["exported"]
    assert there == exported
    modality = "caption" if source is captions_alone else "image"
    matrix = np.load(tmp_path / "npy" / "npy" / f"{modality}_embeddings.npy")
    rows = pq.read_table(tmp_path / "npy" / "npy" / "rows.parquet")
    assert matrix.shape == (exported["npy"], 48) and rows.num_rows == exported["npy"]
    assert set(os.listdir(tmp_path / "faiss" / "faiss")) == {f"{modality}.index", "rows.parquet"}
    if source is no_rows:
        for folder in ("img_emb", "metadata"):
            assert os.listdir(tmp_path / "clip_retrieval" / folder) == [], "never an empty file"
        assert os.listdir(tmp_path / "webdataset" / "shards") == []
        assert np.load(tmp_path / "datacomp_uids" / "datacomp" / "uids.npy").shape == (0,)


def test_embeddings_of_half_precision_stay_so(embed, tmp_path):
    make_tar(tmp_path / "a.tar", 3)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--embedding_dtype", "float16"])
    rows = rows_of(tmp_path / "out")
    expected = np.array([row["image_embedding"] for row in rows], np.float16)
    export_embeddings(tmp_path / "out", tmp_path / "npy", "npy")
    export_embeddings(tmp_path / "out", tmp_path / "cr", "clip_retrieval")
    for path in (tmp_path / "npy" / "npy" / "image_embeddings.npy", tmp_path / "cr" / "img_emb" / "img_emb_0.npy"):
        matrix = np.load(path)
        assert matrix.dtype == np.float16
        np.testing.assert_array_equal(matrix, expected)
    assert export_embeddings(tmp_path / "out", tmp_path / "lance", "lance")["counts"]["exported"] == 3


def test_a_dataset_and_an_export_on_an_object_store(embed, tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/export/a.tar", open(make_tar(tmp_path / "a.tar", 5), "rb").read())
    for i in range(2):
        fs.pipe_file(f"/export/photos/{i}.jpg", picture(i))
    try:
        embed("memory://export/a.tar", "memory://export/photos", output="memory://export/out")
        for layout in SAME_BYTES:
            made = export_embeddings("memory://export/out", f"memory://export/{layout}", layout)
            assert made["counts"]["selected"] == 7
            assert made["counts"]["exported"] == {"webdataset": 7, "faiss": 7, "datacomp_uids": 0}.get(layout, 5)
            here = tmp_path / layout
            fs.get(f"/export/{layout}/", str(here) + "/", recursive=True)
            if layout == "webdataset":
                with tarfile.open(here / "shards" / "00000.tar") as tar:
                    assert len(tar.getnames()) == 5 * 3 + 2 * 2
        lance = export_embeddings("memory://export/out", "memory://export/lance", "lance")
        assert lance["counts"]["exported"] == 7
        assert fs.glob("/export/lance/lance/embeddings.lance/_versions/*.manifest")
    finally:
        fs.rm("/export", recursive=True)


def test_tars_go_from_a_bucket_into_a_bucket(s3, embed, tmp_path):
    s3.fs.put_file(make_tar(tmp_path / "a.tar", 5), "bucket/a.tar")
    embed("s3://bucket/a.tar", output="s3://bucket/out")
    counts = export_embeddings("s3://bucket/out", "s3://bucket/e", "webdataset", samples_per_shard=3)["counts"]
    assert counts == {"selected": 5, "exported": 5, "left_out": {}, "files": 2}
    assert [path.rpartition("/")[2] for path in sorted(s3.fs.ls("bucket/e/shards"))] == [
        *("00000.tar", "00000_stats.json", "00001.tar", "00001_stats.json")
    ]
    s3.fs.rm("bucket/e/shards/00001.tar")
    assert export_embeddings("s3://bucket/out", "s3://bucket/e", "webdataset", samples_per_shard=3)["counts"] == counts
    s3.fs.get_file("bucket/e/shards/00001.tar", tmp_path / "00001.tar")
    with tarfile.open(tmp_path / "00001.tar") as tar:
        assert tar.extractfile("000004.jpg").read() == picture(4)


ODD_NAMES = ["image_path", "a.b", "a_b", "my_a_b", "_rowid", "labels", "captions", "uid", "x.label", "dog"]


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory):
    """A dataset whose own columns are called as other things are, with a value that tells which is which."""
    folder = tmp_path_factory.mktemp("odd")
    rows = {"caption": ["words"], "clip_score": [0.5], "image_embedding": np.eye(1, 4)}
    rows |= {"caption_embedding": np.eye(1, 4), **{name: [f"own {name}"] for name in ODD_NAMES}}
    return write_rows(folder / "out", [rows], {"animals": [{"label": ["cat"]}]}, columns=ODD_NAMES)


def test_columns_of_ones_own_keep_the_names_of_others_apart(odd_names, tmp_path):
    """`image_path` took the place of the key, `captions` that of the caption, and Lance lost names with dots."""
    export_embeddings(odd_names, tmp_path / "cr", "clip_retrieval")
    (row,) = pq.read_table(tmp_path / "cr" / "metadata" / "metadata_0.parquet").to_pylist()
    assert (row["image_path"], row["my_image_path"], row["animals.label"]) == ("000000", "own image_path", "cat")
    assert [row[name] for name in ODD_NAMES[1:]] == [f"own {name}" for name in ODD_NAMES[1:]]
    lance = pytest.importorskip("lance")
    export_embeddings(odd_names, tmp_path / "lance", "lance")
    (row,) = lance.dataset(str(tmp_path / "lance" / "lance" / "embeddings.lance")).to_table().to_pylist()
    assert (row["my_my_a_b"], row["a_b"], row["my_a_b"]) == ("own a.b", "own a_b", "own my_a_b")
    assert (row["my__rowid"], row["x_label"], row["animals"]["label"]) == ("own _rowid", "own x.label", "cat")
