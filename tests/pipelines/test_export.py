"""Export: rows of a dataset as training shards again, or in the layouts of other tools; the same on every runner."""

import json
import os
import shutil
import sys
import tarfile

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, files_of, make_folder, make_parquet, make_tar, pair, picture, rows_of, write_tar
from test_runners import TWO_PROCESSES, kill_when

from benchmarks.datasets import write_rows
from clip_transforms import (
    ClipSpec,
    Dataset,
    ExportEmbeddings,
    Taxonomy,
    embed_shards,
    export_embeddings,
    filter_embeddings,
)
from clip_transforms.exports.plan import LAYOUTS
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.run.export_steps import _Count
from pipelines import export, label

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

SAME_BYTES = [name for name in LAYOUTS if name != "lance"]  # Lance names its files at random


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """A dataset of tars, a Parquet file, a folder and a listing, with labels, and a selection of its rows."""
    folder = tmp_path_factory.mktemp("made")
    for name, first in (("a", 0), ("b", 9)):
        members = [m for i in range(first, first + 9) for m in pair(f"{i:032x}", i, json=json.dumps({"n": i}).encode())]
        write_tar(folder / f"{name}.tar", members)
    make_parquet(folder / "p.parquet", 12, first=20)
    make_folder(folder / "photos", 7, first=40)
    (folder / "l").mkdir()
    (folder / "l" / "l.csv").write_text("image,caption\nx.jpg,one\n,two\nx.jpg,\n")
    (folder / "l" / "x.jpg").write_bytes(picture(60))
    inputs = [folder / "*.tar", folder / "p.parquet", folder / "photos", folder / "l" / "l.csv"]
    (folder / "colors.txt").write_text("red\nblue\n")
    model = ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([*map(str, inputs)], folder / "out", model, Taxonomy.load(str(folder / "colors.txt")))
    rows = [row for row in rows_of(folder / "out") if row["row"] % 3 != 1]
    pq.write_table(
        pa.table({"shard": [r["shard"] for r in rows], "row": [r["row"] for r in rows]}), folder / "s.parquet"
    )
    return folder


def written(output):
    """What an export wrote: path → bytes."""
    paths = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def arguments(made, output, layout, *flags):
    shards = ["--samples_per_shard", 4] if layout == "webdataset" else []
    argv = ["--input", made / "out", "--output", output, "--as", layout, "--selection", made / "s.parquet"]
    return [str(part) for part in (*argv, *shards, *flags)]


@pytest.fixture(scope="module")
def reference(made, tmp_path_factory):
    """Every layout, by the plain function: layout → folder."""
    found = {}
    for layout in LAYOUTS:
        found[layout] = tmp_path_factory.mktemp("reference") / "e"
        options = {"samples_per_shard": 4} if layout == "webdataset" else {}
        export_embeddings(made / "out", found[layout], layout, selection=made / "s.parquet", **options)
    return found


def counts_of(folder):
    return json.loads((folder / "export.json").read_text())["counts"]


def test_the_counts_add_up(reference):
    """27 of 40 rows were selected: one has no caption, and the tars' keys alone are uids."""
    assert {layout: counts_of(folder) for layout, folder in reference.items()} == {
        "webdataset": {"selected": 27, "exported": 27, "left_out": {}, "files": 8},
        "clip_retrieval": {"selected": 27, "exported": 26, "left_out": {"without both embeddings": 1}, "files": 1},
        "npy": {"selected": 27, "exported": 26, "left_out": {"without both embeddings": 1}, "files": 2},
        "datacomp_uids": {"selected": 27, "exported": 12, "left_out": {"without uid": 15}, "files": 1},
        "faiss": {"selected": 27, "exported": 27, "left_out": {}, "files": 1},
        "lance": {"selected": 27, "exported": 27, "left_out": {}, "files": 1},
    }


def test_beam_in_this_process_gives_the_same_bytes(made, reference, tmp_path):
    for layout in SAME_BYTES:
        options = {"samples_per_shard": 4} if layout == "webdataset" else {}
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            transform = ExportEmbeddings(
                made / "out", tmp_path / layout, layout, selection=made / "s.parquet", **options
            )
            _ = pipeline | transform
        assert written(tmp_path / layout) == written(reference[layout])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | ExportEmbeddings(made / "out", tmp_path / "lance", "lance", selection=made / "s.parquet")
    assert counts_of(tmp_path / "lance") == counts_of(reference["lance"])


@pytest.mark.slow  # two workers of Beam, which import everything anew; the portable runner below has workers too
@pytest.mark.parametrize("layout", ["webdataset", "datacomp_uids"])
def test_two_processes_give_the_same_bytes(layout, made, reference, tmp_path):
    done = command("pipelines.export", *arguments(made, tmp_path / "e", layout, *TWO_PROCESSES))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "e") == written(reference[layout])


@pytest.mark.parametrize(
    "layout",
    [
        "webdataset",
        # Some seconds each; the steps of these differ from those of tars, but not how they reach a worker.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip_retrieval", "datacomp_uids", "npy")),
    ],
)
def test_the_portable_runner_with_workers_gives_the_same_bytes(layout, made, reference, service, tmp_path):
    done = command("pipelines.export", *arguments(made, tmp_path / "e", layout, *service))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "e") == written(reference[layout])


def test_the_tars_hold_the_selected_samples_in_the_datasets_order(made, reference):
    tars = sorted((reference["webdataset"] / "shards").glob("*.tar"))
    found, sizes = [], []
    for path in tars:
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in members))
        sizes.append(len(names))
        for name in names:
            found.append((json.loads(members[f"{name}.json"])["key"], members.get(f"{name}.jpg")))
    assert sizes == [4, 4, 4, 4, 4, 2, 4, 1], "a group of parts ends when it has four tars"
    parts = sorted((made / "out" / "embeddings").glob("*.parquet"))
    rows = [row for path in parts for row in pq.ParquetFile(path).read().to_pylist() if row["row"] % 3 != 1]
    assert [key for key, _ in found] == [row["key"] for row in rows]
    assert [image is not None for _, image in found] == [row["image_embedding"] is not None for row in rows]
    assert {image for _, image in found} <= {picture(i) for i in range(61)} | {None}


def test_npy_is_the_matrix_and_its_rows(made, reference):
    folder = reference["npy"] / "npy"
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    known = {(row["shard"], row["row"]): row for row in rows_of(made / "out")}
    for modality in ("image", "caption"):
        matrix = np.load(folder / f"{modality}_embeddings.npy", mmap_mode="r")
        assert (matrix.dtype, matrix.shape) == (np.float32, (26, 48))
        expected = [known[row["shard"], row["row"]][f"{modality}_embedding"] for row in rows]
        np.testing.assert_array_equal(matrix, np.array(expected, np.float32))
    assert list(rows[0]) == ["key", "shard", "row", "caption", "clip_score"]


def test_the_metadata_of_clip_retrieval_hold_everything_that_is_known(made, reference):
    (path,) = (reference["clip_retrieval"] / "metadata").glob("*.parquet")
    table = pq.read_table(path)
    assert table.column_names[:2] == ["image_path", "caption"]
    assert {"shard", "row", "clip_score", "metadata", "colors.label", "colors.margin"} <= set(table.column_names)
    assert table.schema.field("colors.label").type == pa.string()
    known = {(row["shard"], row["row"]): row for row in rows_of(made / "out")}
    labels = {(row["shard"], row["row"]): row["label"] for row in rows_of(made / "out", "labels/colors")}
    for row in table.to_pylist():
        place = row["shard"], row["row"]
        assert (row["image_path"], row["metadata"]) == (known[place]["key"], known[place]["metadata"])
        assert row["colors.label"] == labels[place]


def test_the_command_says_what_it_did_and_does_it_once(made, tmp_path, capsys):
    argv = arguments(made, tmp_path / "e", "webdataset")
    assert export.main(argv) == 0
    line = f"27 rows = 27 exported, in {tmp_path}/e (8 tars)"
    assert capsys.readouterr().out.splitlines() == [line]
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "e").rglob("*")}
    assert export.main(argv) == 0
    assert capsys.readouterr().out.splitlines() == [line, "nothing was left to do"]
    assert {path: os.stat(path).st_mtime_ns for path in (tmp_path / "e").rglob("*")} == before
    assert set(os.listdir(tmp_path / "e")) == {"_command.json", "_SUCCESS", "export.json", "shards"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_was_removed_is_made_again_by_the_same_command(layout, made, reference, tmp_path):
    options = {"samples_per_shard": 4} if layout == "webdataset" else {}

    def run():
        return export_embeddings(made / "out", tmp_path / "e", layout, selection=made / "s.parquet", **options)

    content = run()
    for folder in content["entries"]:
        first = sorted((tmp_path / "e" / folder).iterdir())[-1]
        shutil.rmtree(first) if first.is_dir() else first.unlink()
        assert run() == content
        if layout in SAME_BYTES:
            assert written(tmp_path / "e") == written(reference[layout])
        else:
            assert first.exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("layout", SAME_BYTES)
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
def test_whatever_file_it_was_killed_at_the_next_run_ends_with_the_same_bytes(
    layout, at, made, reference, tmp_path, monkeypatch
):
    from clip_transforms import storage

    real, committed = storage.commit_file, []

    def commit(local, uri):
        committed.append(uri)
        if len(committed) == at:
            raise Killed
        real(local, uri)

    options = {"samples_per_shard": 4} if layout == "webdataset" else {}

    def run():
        return export_embeddings(made / "out", tmp_path / "e", layout, selection=made / "s.parquet", **options)

    with monkeypatch.context() as patch:
        for module in ("clip_transforms.storage", "clip_transforms.storage.writing"):
            patch.setattr(f"{module}.commit_file", commit)
        try:
            run()
        except Killed:
            assert not (tmp_path / "e" / "_SUCCESS").exists()
    run()
    assert written(tmp_path / "e") == written(reference[layout])


def test_a_process_that_is_killed_leaves_whole_tars_and_the_next_goes_on(made, reference, slow_commits, tmp_path):
    argv = arguments(made, tmp_path / "slow", "webdataset")
    kill_when(lambda: list(tmp_path.glob("slow/shards/*.tar")), "pipelines.export", argv, slow_commits)
    there = {path: os.stat(path).st_mtime_ns for path in tmp_path.glob("slow/shards/*.tar")}
    assert there and not (tmp_path / "slow" / "_SUCCESS").exists()
    assert export.main(argv) == 0
    assert written(tmp_path / "slow") == written(reference["webdataset"])
    assert there.items() <= {path: os.stat(path).st_mtime_ns for path in tmp_path.glob("slow/shards/*.tar")}.items()


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


# Odd datasets.


def captions_alone(path):
    return [write_tar(path / "a.tar", [(f"{i}.txt", f"number {i}".encode()) for i in range(3)])]


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


def test_a_dataset_without_success_is_exported_with_a_warning(embed, tmp_path, caplog):
    make_tar(tmp_path / "a.tar", 2)
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert export_embeddings(tmp_path / "out", tmp_path / "e", "npy")["counts"]["exported"] == 2
    assert "has no _SUCCESS" in caplog.text


def test_two_fingerprints_in_one_dataset_are_refused(embed, tmp_path):
    make_tar(tmp_path / "a.tar", 2)
    make_tar(tmp_path / "b.tar", 2)
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    embed(tmp_path / "b.tar", output=tmp_path / "other", flags=["--max_caption_bytes", 99])
    for kind in ("embeddings", "rejects"):
        (part,) = (tmp_path / "other" / kind).glob("*.parquet")
        (tmp_path / "out" / kind / part.name).write_bytes(part.read_bytes())
    with pytest.raises(DatasetError, match="made with other settings"):
        export_embeddings(tmp_path / "out", tmp_path / "e", "npy")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("damage", ["missing", "stale"])
def test_labels_that_are_missing_or_stale_are_refused_unless_they_are_not_asked_for(
    damage, embed, tmp_path, taxonomy_file
):
    make_tar(tmp_path / "a.tar", 2)
    make_tar(tmp_path / "b.tar", 2, first=2)
    embed(tmp_path / "*.tar", output=tmp_path / "out", flags=["--taxonomy", taxonomy_file])
    first, second = sorted((tmp_path / "out" / "labels" / "animals").glob("*.parquet"))
    first.unlink() if damage == "missing" else first.write_bytes(second.read_bytes())
    for layout in ("webdataset", "clip_retrieval", "lance"):
        with pytest.raises(DatasetError, match=r"labels/animals.*pipelines\.label"):
            export_embeddings(tmp_path / "out", tmp_path / "e", layout)
    made = export_embeddings(tmp_path / "out", tmp_path / "e", "webdataset", labels=())
    assert made["counts"]["exported"] == 4 and made["made_by"]["labels"] == []
    with tarfile.open(tmp_path / "e" / "shards" / "00000.tar") as tar:
        assert "labels" not in json.loads(tar.extractfile("000000.json").read())
    label.main(["--input", str(tmp_path / "out"), "--taxonomy", taxonomy_file])
    assert export_embeddings(tmp_path / "out", tmp_path / "f", "lance")["made_by"]["labels"] == ["animals"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--as", "wds"], ["--as is 'wds'", "webdataset", "or lance; correct it\n"]),
        ([], ["--as", "webdataset"]),
        (["--as", "npy", "--samples_per_shard", "9"], ["--samples_per_shard", "webdataset", "omit it"]),
        (["--as", "webdataset", "--samples_per_shard", "0"], ["--samples_per_shard is 0", "1 or more"]),
        (["--as", "lance", "--modality", "image"], ["--modality", "clip_retrieval", "omit it"]),
        (["--as", "npy", "--labels", "colors"], ["--labels", "omit it"]),
        (["--as", "npy", "--allow_uri", "https://"], ["--allow_uri", "omit it"]),
        (["--as", "lance", "--labels", "colours"], ["colours", "colors"]),
        (["--as", "npy", "--selection", "nowhere.parquet"], ["nowhere.parquet", "does not exist"]),
        (["--as", "npy", "--part", "x"], ["--part"]),
    ],
)
def test_wrong_arguments_are_one_sentence_and_write_nothing(argv, said, made, tmp_path):
    done = command("pipelines.export", "--input", made / "out", "--output", tmp_path / "e", *argv)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "e").exists()
    (line,) = done.stderr.splitlines(True)[-1:]
    assert all(word in line for word in said), line


def test_a_modality_that_the_dataset_lacks_is_refused(embed, tmp_path):
    embed(*captions_alone(tmp_path), output=tmp_path / "out")
    for modality in ("image", "both"):
        with pytest.raises(ValueError, match=f"--modality is {modality}.*no image embeddings.*--modality caption"):
            export_embeddings(tmp_path / "out", tmp_path / "e", "npy", modality=modality)
    assert export_embeddings(tmp_path / "out", tmp_path / "e", "faiss", modality="caption")["counts"]["exported"] == 3


@pytest.mark.parametrize(("layout", "package"), [("faiss", "faiss"), ("lance", "lance")])
def test_a_package_that_is_missing_is_named_with_its_extra(layout, package, made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"faiss": "search", "lance": "lance"}[layout]
    with pytest.raises(ValueError, match=rf"pip install 'clip-transforms\[{extra}\]'"):
        export_embeddings(made / "out", tmp_path / "e", layout)


def test_outputs_of_others_are_refused_and_overwrite_leaves_no_other_layout(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for output in (tmp_path / "mine", made / "out" / "e", made):
        with pytest.raises(ValueError, match=r"holds something else|lie in each other"):
            export_embeddings(made / "out", output, "npy")
    export_embeddings(made / "out", tmp_path / "e", "clip_retrieval")
    with pytest.raises(ValueError, match=r"as was 'clip_retrieval', now 'npy'.*--overwrite"):
        export_embeddings(made / "out", tmp_path / "e", "npy")
    export_embeddings(made / "out", tmp_path / "e", "npy", overwrite=True)
    assert set(os.listdir(tmp_path / "e")) == {"_command.json", "_SUCCESS", "export.json", "npy"}
    before = files_of(made / "out")
    export_embeddings(made / "out", tmp_path / "e", "webdataset", overwrite=True)
    assert files_of(made / "out") == before, "a dataset is only read"


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


@pytest.mark.parametrize(
    "layout, change",
    [("npy", "rows"), ("clip_retrieval", "rows"), ("datacomp_uids", "rows"), ("clip_retrieval", "classes")],
)
def test_a_dataset_that_changes_while_an_export_runs_is_not_mixed(tmp_path, monkeypatch, layout, change):
    def write(score, classes):
        rows = [{"clip_score": [score] * 3, "image_embedding": np.eye(3, 4)}] * 2
        return write_rows(tmp_path / "out", rows, {"animals": [{"label": ["cat"] * 3}] * 2}, classes=classes)

    out, items = write(0.1, ["cat", "dog"]), _Count.items

    def change_first(self, state):
        write(*((0.9, ["cat", "dog"]) if change == "rows" else (0.1, ["cat", "cow"])))
        return items(self, state)

    monkeypatch.setattr(_Count, "items", change_first)
    with pytest.raises(DatasetError, match=r"/out has changed while this command read it; give the command again"):
        export_embeddings(out, tmp_path / "e", layout)
    assert not (tmp_path / "e" / "_SUCCESS").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has changed since --output .* was made; .*--overwrite"):
        export_embeddings(out, tmp_path / "e", layout)
    assert export_embeddings(out, tmp_path / "e", layout, overwrite=True)["counts"]["selected"] == 6


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


def test_a_column_that_is_called_as_one_of_labels_is_one_sentence(tmp_path, embed):
    """It was a KeyError."""
    make_tar(tmp_path / "a.tar", 1)
    rows = {"clip_score": [0.5], "image_embedding": np.eye(1, 4), "animals.label": ["own"]}
    out = write_rows(tmp_path / "out", [rows], {"animals": [{"label": ["cat"]}]}, columns=["animals.label"])
    said = "has the column animals.label besides the taxonomy animals, so its labels cannot be told apart; label it"
    for layout in ("webdataset", "clip_retrieval", "lance"):
        with pytest.raises(DatasetError, match=said):
            export_embeddings(out, tmp_path / layout, layout)
    assert export_embeddings(out, tmp_path / "npy", "npy")["counts"]["exported"] == 1
    with pytest.raises(DatasetError, match=said):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    assert filter_embeddings(out, tmp_path / "kept", where="clip_score > 0")["counts"]["kept"] == 1
    with pytest.raises(DatasetError, match=said):
        Dataset.open(out).to_table(labels="animals")
    (tmp_path / "animals.txt").write_text("cat\ndog\n")
    said = "--taxonomy animals has a column of labels animals.label, as the dataset does; rename the file"
    with pytest.raises(ValueError, match=said):
        embed(
            tmp_path / "a.tar",
            output=tmp_path / "n",
            flags=["--columns", "animals.label", "--taxonomy", tmp_path / "animals.txt"],
        )
    assert not (tmp_path / "n").exists()


def test_an_export_over_its_own_selection_is_refused(tmp_path):
    out = write_rows(tmp_path / "out", [{"clip_score": [0.1, 0.2], "image_embedding": np.eye(2, 4)}])
    filter_embeddings(out, tmp_path / "kept", where="true")
    with pytest.raises(ValueError, match="--output .*/kept and --selection .*/kept lie in each other"):
        export_embeddings(out, tmp_path / "kept", "npy", selection=tmp_path / "kept", overwrite=True)
    assert (tmp_path / "kept" / "_SUCCESS").exists()
