"""Filter: selections by SQL, rank and sample; the same on every runner, and what is refused."""

import io
import json
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, make_folder, make_tar
from test_runners import TWO_PROCESSES

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, FilterEmbeddings, filter_embeddings, label_embeddings
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.filter_embeddings import _Count, _WriteParts
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.parts.manifest import OutputError
from clip_transforms.select.fence import ExpressionError
from clip_transforms.select.filtering import Filter
from clip_transforms.select.row_files import RowFileError
from clip_transforms.select.selection import Selection, SelectionError
from pipelines import filter as filter_command
from pipelines import progress

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

SCORES = [[0.5, 0.1, None, 0.3], [0.3, 0.3], [], [0.9, float("nan"), 0.3]]
LABELS = [["cat", "dog", None, "cat"], ["cat", "cat"], [], ["dog", "cat", "cat"]]
ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]}).digest + " top 5"
CONDITIONS = {"where": "animals.label = 'cat'", "by": "clip_score", "top_count": 3}


def write(folder, scores=SCORES, labels=LABELS, classes=("cat", "dog")):
    parts = [{"clip_score": of, "width": [10] * len(of), "image_embedding": np.eye(len(of), 4)} for of in scores]
    labels = [
        {"label": of[: len(part)], "probability": [0.5] * len(part)} for of, part in zip(labels, scores, strict=True)
    ]
    return write_rows(folder, parts, {"animals": labels}, classes=classes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


def files(folder):
    """Path → bytes of everything that a verb wrote."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def kept(folder):
    """(part, row) of the kept rows, in the order of the files."""
    paths = sorted((folder / "parts").iterdir())
    return [(int(path.stem[-5:]), row) for path in paths for row in pq.read_table(path)["row"].to_pylist()]


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


# Selections


def select(dataset, tmp_path, name, **conditions):
    filter_embeddings(dataset, tmp_path / name, **conditions)
    return tmp_path / name


def test_selections_narrow_and_several_intersect(dataset, tmp_path):
    cats = select(dataset, tmp_path, "cats", where="animals.label = 'cat'")
    good = select(dataset, tmp_path, "good", where="clip_score >= 0.3")
    both = select(dataset, tmp_path, "both", selection=[cats, good], where="1 = 1")
    assert kept(both) == [(0, 0), (0, 3), (1, 0), (1, 1), (3, 2)]
    record = json.loads((both / "selection.json").read_text())
    assert record["counts"] == {"seen": 9, "kept": 5, "dropped": {"selection": 4, "where": 0}, "null": 0}
    assert [given["selection"] for given in record["made_by"]["selection"]] == [str(cats), str(good)]


def write_parquet(path, rows):
    pq.write_table(pa.table({"shard": [s for s, _ in rows], "row": [r for _, r in rows]}), path)


def write_csv(path, rows):
    # As a spreadsheet writes it where a comma separates decimals.
    path.write_text("row;shard;note\n" + "".join(f'{row};{shard};"two\nlines"\n' for shard, row in rows))


NAMED = [("/shards/3.tar", 2), ("/shards/0.tar", 0), ("/shards/3.tar", 2)]


@pytest.mark.parametrize("name, writer", [("s.parquet", write_parquet), ("s.csv", write_csv)], ids=["Parquet", "CSV"])
def test_a_file_of_shards_and_rows_is_a_selection(dataset, tmp_path, name, writer):
    writer(tmp_path / name, NAMED)
    assert kept(select(dataset, tmp_path, "kept", selection=tmp_path / name)) == [(0, 0), (3, 2)]
    writer(tmp_path / f"unknown-{name}", [*NAMED, ("/shards/0.tar", 4)])
    with pytest.raises(RowFileError, match="names row 4 of /shards/0.tar, which .*/out does not have"):
        select(dataset, tmp_path, "other", selection=tmp_path / f"unknown-{name}")
    writer(tmp_path / f"strange-{name}", [("/shards/9.tar", 0)])
    with pytest.raises(RowFileError, match="names row 0 of /shards/9.tar"):
        select(dataset, tmp_path, "other", selection=tmp_path / f"strange-{name}")
    assert not (tmp_path / "other").exists()


def test_a_text_of_keys_is_a_selection_where_keys_are_unique(dataset, tmp_path):
    write_rows(tmp_path / "own", [{"key": ["a", "b"], "clip_score": [1, 0]}, {"key": ["ü", "b"], "clip_score": [1, 0]}])
    (tmp_path / "keys.txt").write_text("ü\r\na\n\na\n")
    assert kept(select(tmp_path / "own", tmp_path, "kept", selection=tmp_path / "keys.txt")) == [(0, 0), (1, 0)]
    (tmp_path / "twice.txt").write_text("b\n")
    with pytest.raises(RowFileError, match="names the key b, which .* has more than once"):
        select(tmp_path / "own", tmp_path, "other", selection=tmp_path / "twice.txt")
    (tmp_path / "none.txt").write_text("a\nzebra\n")
    with pytest.raises(RowFileError, match="names the key zebra, which .* does not have"):
        select(tmp_path / "own", tmp_path, "other", selection=tmp_path / "none.txt")


def test_keys_may_hold_any_character_but_the_end_of_a_line(tmp_path):
    """Python's splitlines cut keys at many more."""
    odd = ["a\u2028b", "c\x0bd", "e\x85f", "\x1cg", "h\r", " i "]
    write_rows(tmp_path / "odd", [{"key": [*odd, "other"], "clip_score": [0] * 7}])
    (tmp_path / "keys.txt").write_bytes("\n".join([*odd[:4], "h\r\r", " i \r"]).encode())
    assert kept(select(tmp_path / "odd", tmp_path, "kept", selection=tmp_path / "keys.txt")) == [
        (0, n) for n in range(6)
    ]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.parquet", b"no Parquet", "cannot be read"),
        ("a.csv", b"shard,place\n/shards/0.tar,1\n", "must have the columns shard and row, but it has shard, place"),
        ("a.csv", b"shard,row\n/shards/0.tar,x\n", "cannot be read"),
        ("a.csv", b"shard,row\n/shards/0.tar,\n", "a row without a shard or a row"),
        ("a.txt", b"\xff\n", "is not UTF-8"),
        ("a.json", b"[]", "must be a folder that filter wrote, a .parquet or .csv file"),
    ],
)
def test_a_file_that_names_no_rows_is_one_sentence(dataset, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowFileError, match=said):
        Selection.open(Dataset.open(dataset), tmp_path / name)


def test_a_selection_that_cannot_be_used_is_one_sentence(dataset, tmp_path):
    def refused(place, said):
        with pytest.raises(SelectionError, match=said):
            Selection.open(Dataset.open(dataset), place)

    refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no selection: it has no parts/")
    refused(dataset, "is no selection: it has no parts/")
    whole = select(dataset, tmp_path, "whole", where="1 = 1")
    (whole / "_SUCCESS").unlink()
    refused(whole, "is not complete; run the command that made it again")
    other = write_rows(tmp_path / "other", [{"clip_score": [1.0]}], columns=["licence"])
    refused(select(other, tmp_path, "of other", where="1 = 1"), "is of another dataset, ")


def test_a_selection_of_a_dataset_that_has_changed_is_refused_by_name(tmp_path):
    out = write(tmp_path / "out")
    filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    write(tmp_path / "out", [*SCORES[:3], [0.8, 0.2, 0.3]])
    with pytest.raises(SelectionError, match="was made before .* changed: 1 part of it is not the same, part-00003"):
        filter_embeddings(out, tmp_path / "again", selection=tmp_path / "kept")
    with pytest.raises(
        OutputError, match="has changed since --output .* was made; give another --output, or --overwrite"
    ):
        filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    assert filter_embeddings(out, tmp_path / "kept", where="1 = 1", overwrite=True)["counts"]["kept"] == 9


@pytest.mark.parametrize("step", [_Count, _WriteParts], ids=["before the first pass", "before the last"])
@pytest.mark.parametrize("change", ["rows", "classes"])
def test_a_dataset_that_changes_while_a_filter_runs_is_not_mixed(tmp_path, monkeypatch, step, change):
    """Counted in one state and written in another, three rows at most became all."""
    out, items = write(tmp_path / "out"), step.items

    def change_first(self, state):
        others = {"scores": [[0.9] * len(of) for of in SCORES]} if change == "rows" else {"classes": ["dog", "cat"]}
        write(tmp_path / "out", **others)
        yield from items(self, state)

    monkeypatch.setattr(step, "items", change_first)
    with pytest.raises(DatasetError, match="part-00000.parquet was replaced while this command read the dataset"):
        filter_embeddings(out, tmp_path / "kept", **CONDITIONS)
    assert not (tmp_path / "kept" / "_SUCCESS").exists() and kept(tmp_path / "kept") == []


def test_labels_of_other_classes_make_another_selection(tmp_path):
    out = write(tmp_path / "out")
    filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    (tmp_path / "kept" / "parts" / "part-00000.parquet").unlink()  # as if it had been killed there
    turned = [[{"cat": "dog", "dog": "cat", None: None}[label] for label in of] for of in LABELS]
    write(tmp_path / "out", labels=turned, classes=("cat", "dog", "cow"))
    with pytest.raises(OutputError, match="has changed since --output .* was made; give another --output, or --over"):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'", overwrite=True)
    assert kept(tmp_path / "kept") == [(0, 1), (3, 0)]


def test_labels_of_another_length_make_another_selection(tmp_path):
    out = write(tmp_path / "out")
    filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    for part in (tmp_path / "out" / "labels" / "animals").iterdir():
        table = pq.read_table(part)
        footer = json.loads(pq.ParquetFile(part).metadata.metadata[b"clip"])
        with pq.ParquetWriter(part, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"clip": json.dumps(footer | {"top_labels": 2})})
    with pytest.raises(OutputError, match="has changed since --output .* was made"):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")


def test_samples_are_the_same_everywhere_and_larger_ones_contain_smaller_ones(dataset, tmp_path):
    parts = [{"shard": f"/s{n}.tar", "clip_score": np.zeros(1000)} for n in range(4)]
    out = write_rows(tmp_path / "out", parts)
    small = set(kept(select(out, tmp_path, "small", sample_fraction=0.1, seed=7)))
    large = set(kept(select(out, tmp_path, "large", sample_fraction=0.3, seed=7)))
    other = set(kept(select(out, tmp_path, "other", sample_fraction=0.1, seed=8)))
    assert small < large and 330 < len(small) < 470 and 1100 < len(large) < 1300
    assert len(small & other) < 80
    moved = write_rows(tmp_path / "moved", parts[::-1])
    again = kept(select(moved, tmp_path, "again", sample_fraction=0.1, seed=7))
    assert {(3 - part, row) for part, row in again} == small
    assert kept(select(out, tmp_path, "none", sample_fraction=0)) == []
    assert len(kept(select(out, tmp_path, "all", sample_fraction=1))) == 4000


# Datasets as they are


def test_a_dataset_without_success_is_filtered_with_a_warning(tmp_path, caplog):
    out = write(tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    assert "has no _SUCCESS" in caplog.text and len(kept(tmp_path / "kept")) == 9


def test_two_fingerprints_are_refused(tmp_path):
    out = write(tmp_path / "out")
    write_rows(tmp_path / "other", [{"clip_score": [1.0]}], columns=["licence"])
    shutil.copy(tmp_path / "other" / "embeddings" / "part-00000.parquet", tmp_path / "out" / "embeddings" / "x.parquet")
    with pytest.raises(DatasetError, match="1 part made with other settings than the dataset has now, x among them"):
        filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    assert not (tmp_path / "kept").exists()


def test_labels_that_are_missing_or_stale_are_refused_where_they_are_read(tmp_path):
    out = write(tmp_path / "out")
    labels = tmp_path / "out" / "labels" / "animals"
    shutil.copy(labels / "part-00001.parquet", labels / "part-00003.parquet")
    with pytest.raises(
        DatasetError, match="labels/animals made from other embeddings for 1 part, part-00003 among them; "
    ):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    (labels / "part-00003.parquet").unlink()
    with pytest.raises(DatasetError, match="no labels/animals for 1 of 4 parts, part-00003 among them; python -m pip"):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    (labels / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match="no labels/animals for 2 of 4 parts, part-00000 among them; python -m pip"):
        filter_embeddings(out, tmp_path / "none", where="animals.label = 'cat'")
    assert filter_embeddings(out, tmp_path / "kept", where="clip_score > 0")["counts"]["kept"] == 7


def test_a_dataset_without_rows_gives_a_valid_empty_selection(tmp_path, capsys, without_beam):
    out = write_rows(tmp_path / "out", [{"clip_score": []}] * 2)
    argv = ["--input", out, "--output", str(tmp_path / "kept"), "--where", "clip_score > 0", "--top_fraction", "0.5"]
    assert filter_command.main(argv) == 0
    assert capsys.readouterr().out == f"0 rows = 0 kept, in {tmp_path}/kept\nnote: the selection is empty\n"
    assert kept(tmp_path / "kept") == [] and (tmp_path / "kept" / "_SUCCESS").exists()
    assert filter_embeddings(out, tmp_path / "again", selection=tmp_path / "kept")["counts"]["seen"] == 0


def test_captions_alone_have_no_score_and_null_is_not_true(tmp_path):
    out = write_rows(tmp_path / "out", [{"caption": ["a", "b"], "caption_embedding": np.eye(2, 4)}])
    record = filter_embeddings(out, tmp_path / "kept", top_fraction=0.5)
    assert record["counts"] == {"seen": 2, "kept": 0, "dropped": {}, "null": 2}
    record = filter_embeddings(out, tmp_path / "other", where="image_embedding is null and caption = 'a'")
    assert kept(tmp_path / "other") == [(0, 0)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_expressions_over_embeddings_read_them_and_null_embeddings_are_null(tmp_path, dtype):
    embeddings = [[1, 0, 0, 0], None, [0, 1, 0, 0], [0.6, 0.8, 0, 0]]
    out = write_rows(tmp_path / "out", [{"image_embedding": embeddings, "d": 4}] * 2, embedding_dtype=dtype)
    near = "array_inner_product(image_embedding, [1, 0, 0, 0]::FLOAT[4])"
    record = filter_embeddings(out, tmp_path / "kept", where=f"{near} > 0.5", by=near, top_count=3)
    assert kept(tmp_path / "kept") == [(0, 0), (0, 3), (1, 0)] and record["counts"]["null"] == 2


# Wrong input


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "nothing is asked for; give --where, --top_fraction, --top_count or --sample_fraction"),
        (["--by", "width"], "--by 'width' ranks rows, so it needs --top_fraction or --top_count"),
        (
            ["--top_fraction", "1.5"],
            "--top_fraction is 1.5, but it is a fraction of the rows and must lie in [0, 1]; for 1.5 %",
        ),
        (
            ["--seed", "3", "--top_count", "1"],
            "--seed is 3, but it is that of a sample; give --sample_fraction with it, or omit it",
        ),
        (["--top_fraction", "nan"], "--top_fraction is nan, but it is a fraction"),
        (["--sample_fraction", "-1"], "--sample_fraction is -1.0, but it is a fraction"),
        (["--top_count", "0"], "--top_count is 0, but it is a number of rows and must be 1 or more"),
        (["--top_count", "1", "--top_fraction", "0.5"], "are both given; give one of them"),
        (["--where", "clip_skore > 0"], "did you mean clip_score?"),
        (["--where", "animal.label = 'cat'"], "did you mean animals.label?"),
        (["--where", "(select 1 from '/etc/passwd') = 1"], "has a sub-select"),
        (["--wher", "1 = 1"], "did you mean --where?"),
        (["--top_count", "x"], "it must be a whole number; correct it, or omit the flag"),
    ],
)
def test_wrong_flags_are_one_sentence_and_write_nothing(dataset, tmp_path, flags, said):
    with pytest.raises(ValueError) as refusal:
        filter_command.main(["--input", dataset, "--output", str(tmp_path / "kept"), *flags])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "kept").exists()


def test_the_command_ends_with_2_and_one_sentence(dataset, tmp_path):
    done = command("pipelines.filter", "--input", dataset, "--output", tmp_path / "kept", "--where", "clip_skore > 0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --where names clip_skore, but the dataset has no such column; did you mean clip_score?\n"
    )


NUMBERS = [["1", "2"], ["3", "x", "-1"], []]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A dataset of captions that are numbers, but for one of the second part."""
    parts = [{"caption": of, "clip_score": [0.5] * len(of)} for of in [[], *NUMBERS]]
    return write_rows(tmp_path_factory.mktemp("texts") / "out", parts)


FAILS = (
    "--where 'caption::int > 0' fails on a row of part-00002: Conversion Error: Could not convert string 'x' to INT32"
)


def test_a_row_on_which_an_expression_fails_ends_the_run_without_a_false_promise(
    texts, tmp_path, capfd, without_beam, monkeypatch
):
    """It said that the same command would go on."""
    monkeypatch.setitem(FilterEmbeddings.begin.__globals__, "_GROUP_ROWS", 100)  # both parts are evaluated at once
    argv = ["--input", texts, "--output", str(tmp_path / "kept"), "--where", "caption::int > 0"]
    assert filter_command.main(argv) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"the run failed: {FAILS}") and said.count("\n") == 1
    cure = "correct the expression; try_cast gives null where a cast fails, and --overwrite replaces an output that has"
    assert said.endswith(f"{cure} begun\n") and "goes on" not in said
    argv[-1] = "try_cast(caption as int) > 0"
    assert filter_command.main([*argv, "--overwrite"]) == 0
    assert kept(tmp_path / "kept") == [(1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("sql", ["caption::int > 0", "clip_score > 0 and caption::timestamp is null"])
def test_an_expression_that_fails_on_the_first_rows_is_refused_before_anything_is_written(tmp_path, sql):
    out = write_rows(tmp_path / "out", [{"caption": [], "clip_score": []}, {"caption": ["x"], "clip_score": [1]}])
    with pytest.raises(
        ExpressionError, match="fails on a row of part-00001: Conversion Error: .*; correct the expr"
    ) as r:
        filter_command.main(["--input", out, "--output", str(tmp_path / "kept"), "--where", sql])
    assert "--overwrite" not in str(r.value) and not (tmp_path / "kept").exists()


def test_rows_that_an_earlier_condition_dropped_cannot_make_an_expression_fail(texts, tmp_path):
    where = {"where": "try_cast(caption as int) is not null"}
    numbers = select(texts, tmp_path, "numbers", **where)
    assert kept(select(texts, tmp_path, "best", by="caption::int", top_count=2, **where)) == [(1, 1), (2, 0)]
    assert kept(select(texts, tmp_path, "large", selection=numbers, where="caption::int > 1")) == [(1, 1), (2, 0)]
    write_csv(tmp_path / "first.csv", [("/shards/2.tar", 0)])
    assert kept(select(texts, tmp_path, "one", selection=tmp_path / "first.csv", where="caption::int > 1")) == [(2, 0)]
    with pytest.raises(ExpressionError, match="fails on a row of part-00002"):
        select(texts, tmp_path, "all", where="caption::int > 1")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--output", "k", "--where", "1 = 1"], "--input is missing"),
        (["--input", "{dataset}", "--where", "1 = 1"], "--output is missing"),
        (["--input", "/nowhere", "--output", "k", "--where", "1 = 1"], "is not a dataset of this program"),
    ],
)
def test_a_missing_place_is_one_sentence(dataset, argv, said):
    with pytest.raises(ValueError, match=said):
        filter_command.main([part.format(dataset=dataset) for part in argv])


@pytest.mark.parametrize(
    "conditions, said",
    [
        ({"where": 3}, "where is an int"),
        ({"top_fraction": "0.3"}, "top_fraction is a str"),
        ({"top_count": 1.5}, "top_count is a float"),
        ({"seed": "a", "sample_fraction": 0.5}, "seed is a str"),
        ({"wher": "1 = 1"}, "wher"),
    ],
)
def test_wrong_types_are_named(dataset, conditions, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Filter.of(Dataset.open(dataset), **conditions)


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--top_count", "50"], "note: --top_count 50 is more than there are; every row"),
        (
            ["--top_fraction", "1"],
            "note: --top_fraction 1.0 reaches into the 2 rows without a value of clip_score; every row",
        ),
    ],
)
def test_more_than_there_is_keeps_everything_with_a_value_and_says_so(
    dataset, tmp_path, capsys, without_beam, flags, line
):
    assert filter_command.main(["--input", dataset, "--output", str(tmp_path / "kept"), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{line} with a value stays"
    assert len(kept(tmp_path / "kept")) == 7


@pytest.mark.parametrize("name", ["clip_score", "Caption", "licence"])
def test_a_taxonomy_named_like_a_column_is_refused(embed, tmp_path, name):
    """In SQL it would stand for the column's name too."""
    make_tar(tmp_path / "a.tar", 2)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--columns", "licence"])
    (tmp_path / f"{name}.txt").write_text("cat\ndog\n")
    said = f"--taxonomy {name} has the name of a column of the dataset; rename the file"
    with pytest.raises(ValueError, match=said):
        label_embeddings(tmp_path / "out", tmp_path / f"{name}.txt")
    with pytest.raises(ValueError, match=said):
        embed(
            tmp_path / "a.tar",
            output=tmp_path / "new",
            flags=["--columns", "licence", "--taxonomy", tmp_path / f"{name}.txt"],
        )
    assert not (tmp_path / "new").exists()


def test_an_output_in_an_embedded_folder_is_refused(embed, tmp_path):
    make_folder(tmp_path / "photos", 2)
    embed(tmp_path / "photos", output=tmp_path / "out")
    with pytest.raises(OutputError, match="kept lies in .*/photos, which was embedded; give a folder outside of it"):
        filter_embeddings(tmp_path / "out", tmp_path / "photos" / "kept", where="1 = 1")
