"""Filter: the rows of further selections, of files of rows and keys, and of samples."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from filtered import CONDITIONS, LABELS, SCORES, kept, select, write, write_csv

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, filter_embeddings
from clip_transforms.filter_embeddings import _Count, _WriteParts
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.parts.manifest import OutputError
from clip_transforms.select.row_files import RowFileError
from clip_transforms.select.selection import Selection, SelectionError

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


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
