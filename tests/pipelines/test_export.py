"""Export: rows of a dataset as training shards again, or in the layouts of other tools; the same on every runner."""

import json
import os
import shutil
import tarfile

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, picture, rows_of
from exported import SAME_BYTES, made_dataset  # noqa: F401
from test_runners import TWO_PROCESSES, kill_when

from clip_transforms import ExportEmbeddings, export_embeddings
from clip_transforms.exports.plan import LAYOUTS
from pipelines import export

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


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
