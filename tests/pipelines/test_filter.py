"""Filter: selections by SQL, rank and sample; the same on every runner, killed and started again."""

import io
import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command
from filtered import ANIMALS, CONDITIONS, files, kept, select, write
from test_runners import TWO_PROCESSES

from clip_transforms import Dataset, FilterEmbeddings, filter_embeddings
from clip_transforms.filter_embeddings import _WriteParts
from clip_transforms.parts.manifest import OutputError
from clip_transforms.select.selection import SelectionError
from pipelines import filter as filter_command
from pipelines import progress

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "kept"
    filter_embeddings(dataset, folder, **CONDITIONS)
    return files(folder)


def test_a_selection_names_the_kept_rows_of_each_part(dataset, tmp_path):
    record = filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert kept(tmp_path / "kept") == [(0, 0), (0, 3), (1, 0)]
    assert (
        record
        == json.loads((tmp_path / "kept" / "selection.json").read_text())
        == {
            "dataset": dataset,
            "fingerprint": Dataset.open(dataset).fingerprint,
            "made_by": {"verb": "filter", **CONDITIONS, "classes": {"animals": ANIMALS}},
            "counts": {"seen": 9, "kept": 3, "dropped": {"top": 2, "where": 2}, "null": 2},
            "cut": {"n": 6, "values": 5, "threshold": float(np.float32(0.3)), "above": 1, "ties": 4},
        }
    )
    part = pq.ParquetFile(tmp_path / "kept" / "parts" / "part-00000.parquet")
    assert part.read().to_pylist() == [
        {"key": "000000", "shard": "/shards/0.tar", "row": 0, "by": 0.5},
        {"key": "000003", "shard": "/shards/0.tar", "row": 3, "by": float(np.float32(0.3))},
    ]
    footer = json.loads(part.metadata.metadata[b"clip"])
    assert footer["digest"] == Dataset.open(dataset).digests["part-00000"]
    empty = pq.ParquetFile(tmp_path / "kept" / "parts" / "part-00002.parquet")
    assert empty.metadata.num_row_groups == 0 and empty.schema_arrow.names == ["key", "shard", "row", "by"]


def test_beam_in_this_process_gives_the_same_bytes(dataset, reference, tmp_path):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        results = pipeline | FilterEmbeddings(dataset, tmp_path / "kept", **CONDITIONS)
        _ = (
            results
            | beam.Map(lambda result: result[1].get("kept", 0))
            | beam.CombineGlobally(sum)
            | beam.Map(check_three)
        )
    assert files(tmp_path / "kept") == reference


def check_three(number):
    assert number == 3


ARGV = ["--where", CONDITIONS["where"], "--by", "clip_score", "--top_count", "3"]


@pytest.mark.slow  # two workers of Beam, which import everything anew; the portable runner below has workers too
def test_two_processes_give_the_same_bytes(dataset, reference, tmp_path):
    done = command("pipelines.filter", "--input", dataset, "--output", tmp_path / "kept", *ARGV, *TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "kept") == reference


def test_the_portable_runner_with_workers_gives_the_same_bytes(dataset, reference, service, tmp_path):
    done = command("pipelines.filter", "--input", dataset, "--output", tmp_path / "kept", *ARGV, *service)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "kept") == reference


@pytest.mark.parametrize("parts", [1, 3, 100_000], ids=lambda n: f"groups of {n}")
def test_the_bytes_do_not_depend_on_how_parts_are_grouped(dataset, reference, tmp_path, monkeypatch, parts):
    monkeypatch.setitem(FilterEmbeddings.begin.__globals__, "_GROUP_ROWS", parts)
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert files(tmp_path / "kept") == reference


def test_labels_are_compared_by_name_whatever_class_a_part_met_first(tmp_path):
    """Each part has a dictionary of its own; parts that are done together share a query."""
    labels = [["cat", "dog", "cat"], ["dog", None, "cat", "dog"], [], ["dog"], [None], ["cat"]]
    made = write(tmp_path / "out", [[0.5] * len(of) for of in labels], labels)
    filter_embeddings(made, tmp_path / "kept", where="animals.label = 'dog' and length(animals.label) = 3")
    assert kept(tmp_path / "kept") == [(0, 1), (1, 0), (1, 3), (3, 0)]


@pytest.mark.parametrize("at", range(1, 8))
def test_whatever_file_it_was_killed_at_the_next_run_ends_with_the_same_bytes(
    dataset, reference, tmp_path, monkeypatch, at
):
    from clip_transforms.storage import writing

    real, count = writing._move, [0]

    class Killed(BaseException):
        pass

    def move(local, uri):
        count[0] += 1
        if count[0] >= at and "_temporary" not in uri:
            raise Killed
        return real(local, uri)

    monkeypatch.setattr(writing, "_move", move)
    try:
        filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    except Killed:
        assert not (tmp_path / "kept" / "_SUCCESS").exists()
    monkeypatch.undo()
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert files(tmp_path / "kept") == reference


def test_the_same_command_again_does_only_what_is_missing(dataset, reference, tmp_path, capsys, without_beam):
    argv = ["--input", dataset, "--output", str(tmp_path / "kept"), *ARGV]
    lines = f"9 rows = 3 kept + 2 dropped by where + 2 dropped by top + 2 null, in {tmp_path}/kept\n"
    lines += "clip_score >= 0.300000012 stays: 1 above and 4 equal, of 6\n"
    assert filter_command.main(argv) == 0 and capsys.readouterr().out == lines
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "parts").iterdir()}
    assert filter_command.main(argv) == 0 and capsys.readouterr().out == f"{lines}nothing was left to do\n"
    (tmp_path / "kept" / "parts" / "part-00001.parquet").unlink()
    assert filter_command.main(argv) == 0 and capsys.readouterr().out == lines
    changed = [path.stem for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["part-00001"] and files(tmp_path / "kept") == reference


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(dataset, tmp_path, capsys, without_beam):
    argv = ["--input", dataset, "--output", str(tmp_path / "kept"), *ARGV]
    head = f"filter over 4 parts of {dataset}, 9 rows\n"
    head += "  where             \"animals.label = 'cat'\"\n  by                'clip_score'\n  top_count         3\n"
    end = f"output {tmp_path}/kept (selection.json, parts); nothing was written (--dry_run)\n"

    def said(*flags):
        before = files(tmp_path)
        assert filter_command.main([*argv, "--dry_run", *flags]) == 0
        assert files(tmp_path) == before
        return capsys.readouterr().out

    assert said() == head + end and not (tmp_path / "kept").exists()
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert said() == f"{head}nothing is left to do\n{end}"
    (tmp_path / "kept" / "_SUCCESS").unlink()
    assert said() == f"{head}an earlier run has begun this, and the command would go on from there\n{end}"
    argv[-1] = "2"
    with pytest.raises(OutputError, match="was made by another command: top_count was 3, now 2"):
        filter_command.main([*argv, "--dry_run"])
    replaced = "--overwrite: what another command made would be replaced: top_count was 3, now 2\n"
    assert said("--overwrite") == head.replace(" 3\n", " 2\n") + replaced + end


def test_overwrite_says_what_it_replaced(dataset, tmp_path, capsys, without_beam):
    argv = ["--input", dataset, "--output", str(tmp_path / "kept"), "--overwrite", "--where"]
    assert filter_command.main([*argv, "true"]) == 0 and "--overwrite" not in capsys.readouterr().out
    assert filter_command.main([*argv, "width > 3"]) == 0
    line = "--overwrite replaced what another command had made: where was 'true', now 'width > 3'\n"
    assert capsys.readouterr().out.endswith(f"/kept\n{line}")
    assert filter_command.main([*argv, "width > 3"]) == 0
    assert capsys.readouterr().out.endswith("/kept\nnothing was left to do\n")


def test_a_terminal_shows_how_far_the_steps_are(dataset, tmp_path, capsys, without_beam, monkeypatch):
    """Only what is drawn is another than in a terminal."""
    shown = []

    class Bar(progress.tqdm):
        def __init__(self, *args, **style):
            super().__init__(*args, **{**style, "disable": False, "file": io.StringIO()})

        def refresh(self, *args, **kwargs):
            shown.append((self.desc, self.n, self.total))

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(progress, "_SECONDS", 0.001)
    monkeypatch.setitem(FilterEmbeddings.begin.__globals__, "_GROUP_ROWS", 1)
    assert filter_command.main(["--input", dataset, "--output", str(tmp_path / "kept"), *ARGV]) == 0
    assert shown[-1] == ("filter, step 4 of 4", 4, 4)
    with progress.steps_bar("filter", [str(tmp_path / "kept" / "parts")], False):
        pass
    assert shown[-1] == ("filter", 4, None)
    assert capsys.readouterr().err == ""


def test_another_command_over_an_output_is_refused_and_overwrite_replaces_it(dataset, reference, tmp_path):
    filter_embeddings(dataset, tmp_path / "kept", where="1 = 1", sample_fraction=0.5)
    with pytest.raises(OutputError, match="made by another command: where was '1 = 1', now \"animals.label = 'cat'\""):
        filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    filter_embeddings(dataset, tmp_path / "kept", overwrite=True, **CONDITIONS)
    assert files(tmp_path / "kept") == reference


@pytest.mark.parametrize("place", ["", "kept", "labels/kept", ".."])
def test_an_output_in_or_around_the_dataset_is_refused(dataset, place):
    before = files(Path(dataset))
    with pytest.raises(OutputError, match="lie in each other"):
        filter_embeddings(dataset, f"{dataset}/{place}".rstrip("/"), where="1 = 1")
    assert files(Path(dataset)) == before


@pytest.mark.parametrize("place", ["kept", "kept/parts", "."])
def test_an_output_in_or_around_a_selection_is_refused(dataset, tmp_path, place):
    """With --overwrite the selection was removed before it was read."""
    (tmp_path / "s").mkdir()
    selection = select(dataset, tmp_path / "s", "kept", where="clip_score > 0.2")
    before = files(selection)
    with pytest.raises(
        OutputError, match="--output .* and --selection .* lie in each other; give a folder outside of it"
    ):
        filter_embeddings(dataset, tmp_path / "s" / place, selection=selection, where="true", overwrite=True)
    assert files(selection) == before


def test_two_commands_at_once_on_one_output_do_not_mix(dataset, reference, tmp_path, monkeypatch):
    """The first went on writing into what the second had begun to replace."""
    items, refused = _WriteParts.items, []

    def overwritten(self, state):
        monkeypatch.undo()
        with pytest.raises(OutputError, match="is being written by another command; wait for its end") as refusal:
            filter_embeddings(dataset, tmp_path / "kept", where="true", overwrite=True)
        refused.append(refusal)
        filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)  # the same one may come in between
        yield from items(self, state)

    monkeypatch.setattr(_WriteParts, "items", overwritten)
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert refused and files(tmp_path / "kept") == reference
    filter_embeddings(dataset, tmp_path / "kept", where="true", overwrite=True)
    assert len(kept(tmp_path / "kept")) == 9


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["gone", "cut off", "other"])
def test_a_record_that_is_gone_or_damaged_is_made_again(dataset, reference, tmp_path, content):
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    record = tmp_path / "kept" / "selection.json"
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(SelectionError, match="selection.json is gone or damaged; run the command"):
        filter_embeddings(dataset, tmp_path / "again", selection=tmp_path / "kept")
    filter_embeddings(dataset, tmp_path / "kept", **CONDITIONS)
    assert files(tmp_path / "kept") == reference


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"row": ["a"]}, "part-00001.parquet is damaged"),
        ({"key": ["a"]}, "part-00001.parquet is damaged"),
        ({"row": [77]}, "part-00001.parquet names rows that the dataset does not have"),
        ({"row": [0, 0]}, "part-00001.parquet names rows that the dataset does not have"),
        ({"row": pa.nulls(1, pa.int64())}, "part-00001.parquet names rows that the dataset does not have"),
    ],
    ids=["types", "columns", "other rows", "rows twice", "nulls"],
)
def test_a_selection_that_was_tampered_with_is_one_sentence(dataset, tmp_path, columns, said):
    filter_embeddings(dataset, tmp_path / "kept", where="true")
    part = tmp_path / "kept" / "parts" / "part-00001.parquet"
    footer = pq.ParquetFile(part).metadata.metadata[b"clip"]
    table = pa.table(columns)
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"clip": footer})
    with pytest.raises(SelectionError, match=said) as refusal:
        filter_embeddings(dataset, tmp_path / "again", selection=tmp_path / "kept")
    assert "\n" not in str(refusal.value) and not (tmp_path / "again" / "_SUCCESS").exists()


def test_an_output_that_holds_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds something else \\(a.jpg\\)"):
        filter_embeddings(dataset, tmp_path / "photos", where="1 = 1", overwrite=True)
    assert files(tmp_path / "photos") == {"a.jpg": b"mine"}
    with pytest.raises(OutputError, match="is a file"):
        filter_embeddings(dataset, tmp_path / "photos" / "a.jpg", where="1 = 1")
