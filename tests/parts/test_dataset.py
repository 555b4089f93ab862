"""Dataset: rows, labels and matrices of a finished dataset, after the checks of every command."""

import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tar, pair, picture, rows_of, write_tar

from clip_transforms import ClipSpec, Dataset, Taxonomy, embed_shards, label_embeddings

ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]})


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """A dataset of three parts: pairs, a caption and a picture alone, and nothing at all."""
    folder = tmp_path_factory.mktemp("dataset")
    make_tar(folder / "a.tar", 5)
    write_tar(folder / "b.tar", [("only.txt", b"words"), ("alone.jpg", picture(7)), *pair("both", 8)])
    write_tar(folder / "c.tar", [("x.json", b"{}")])
    spec = ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([str(folder / "*.tar")], str(folder / "out"), spec, [ANIMALS])
    return folder / "out"


def test_it_says_what_it_is(made):
    dataset = Dataset.open(str(made))
    assert (len(dataset.parts), dataset.embed_dim, dataset.taxonomies) == (3, 48, ["animals"])
    assert dataset.parts == sorted(dataset.parts) and dataset.uri == str(made)
    assert (dataset.provenance["precision"], dataset.provenance["device"]) == ("fp32", "cpu")
    assert repr(dataset) == f"Dataset('{made}', 3 parts, embed_dim 48)"


def test_facts_in_which_parts_differ_are_tuples(made):
    dataset = Dataset.open(str(made))
    footers = {part: dict(footer) for part, footer in dataset._footers.items()}
    first = dataset.parts[0]
    footers[first] = {**footers[first], "provenance": {**footers[first]["provenance"], "precision": "bf16"}}
    provenance = Dataset(dataset.uri, footers).provenance
    assert provenance["precision"] == ("bf16", "fp32") and provenance["device"] == "cpu"


def test_a_table_holds_all_rows_and_the_labels_that_were_asked_for(made):
    table = Dataset.open(str(made)).to_table(["key", "row", "clip_score", "animals.label"], labels=["animals"])
    assert table.column_names == ["key", "row", "clip_score", "animals.label"] and table.num_rows == 8
    labels = {row["key"]: row["label"] for row in rows_of(made, "labels/animals")}
    assert {row["key"]: row["animals.label"] for row in table.to_pylist()} == labels
    assert labels["only"] is None and labels["both"] in ("cat", "dog")


def test_a_table_without_a_choice_of_columns_holds_all_of_them(made):
    table = Dataset.open(str(made)).to_table()
    assert table.num_rows == 8 and table.schema.field("image_embedding").type == pa.list_(pa.float32(), 48)
    assert sorted(table["key"].to_pylist()) == sorted(row["key"] for row in rows_of(made))


@pytest.mark.parametrize("modality, keys", [("image", 7), ("caption", 7)])
def test_embeddings_are_a_matrix_beside_the_names_of_its_rows(made, modality, keys):
    names, matrix = Dataset.open(str(made)).embeddings(modality)
    assert matrix.shape == (keys, 48) and matrix.dtype == np.float32
    stored = {(row["shard"], row["row"]): row[f"{modality}_embedding"] for row in rows_of(made)}
    for name, vector in zip(names.to_pylist(), matrix, strict=True):
        assert stored[name["shard"], name["row"]] == vector.tolist()
    assert ("only" in names["key"].to_pylist()) == (modality == "caption")


def test_half_precision_comes_as_float32(tmp_path, tiny_checkpoint):
    spec = ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([make_tar(tmp_path / "a.tar", 2)], str(tmp_path / "out"), spec, embedding_dtype="float16")
    _, matrix = Dataset.open(str(tmp_path / "out")).embeddings("image")
    assert matrix.dtype == np.float32 and np.linalg.norm(matrix, axis=1) == pytest.approx(1, abs=1e-3)


def test_a_dataset_without_rows_gives_empty_tables(tmp_path, tiny_checkpoint):
    tar = write_tar(tmp_path / "a.tar", [("x.json", b"{}")])
    embed_shards([tar], str(tmp_path / "out"), ClipSpec(tiny_checkpoint, precision="fp32"))
    dataset = Dataset.open(str(tmp_path / "out"))
    names, matrix = dataset.embeddings("image")
    assert (names.num_rows, names.column_names, matrix.shape) == (0, ["key", "shard", "row"], (0, 48))
    assert dataset.to_table().num_rows == 0 and "clip_score" in dataset.to_table().column_names


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda d: d.to_table(["clip_scor"]), "has no column clip_scor; it has key, shard, row"),
        (lambda d: d.to_table(labels=["plants"]), "has no labels/plants for 3 of 3 parts"),
        (lambda d: list(d.batches(labels=["plants"])), "python -m pipelines.label --input"),
        (lambda d: d.embeddings("picture"), "modality is 'picture', but it must be image or caption"),
    ],
    ids=["column", "labels", "batches", "modality"],
)
def test_a_wrong_call_is_one_sentence(made, call, said):
    with pytest.raises(ValueError, match=said):
        call(Dataset.open(str(made)))


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a dataset of this program"):
        Dataset.open(str(tmp_path))


def test_an_incomplete_dataset_is_opened_with_a_warning(tmp_path, tiny_checkpoint, caplog):
    spec = ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([make_tar(tmp_path / "a.tar", 1)], str(tmp_path / "out"), spec)
    (tmp_path / "out" / "_SUCCESS").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(Dataset.open(str(tmp_path / "out")).parts) == 1
    assert "has no _SUCCESS" in caplog.text


def test_an_interrupted_overwrite_is_not_read_as_one_dataset(tmp_path, tiny_checkpoint):
    """Its `_dataset.json` speaks of the new settings already; the parts are still the old ones."""
    out, tar = tmp_path / "out", make_tar(tmp_path / "a.tar", 2)
    embed_shards([tar], str(out), ClipSpec(tiny_checkpoint, precision="fp32"))
    assert Dataset.open(str(out)).embed_dim == 48
    made = json.loads((out / "_dataset.json").read_text())
    made["settings"]["embedding_dtype"] = "float16"
    (out / "_dataset.json").write_text(json.dumps(made))
    for read in (lambda: Dataset.open(str(out)), lambda: label_embeddings(str(out), [ANIMALS])):
        with pytest.raises(ValueError, match="1 part made with other settings .* an --overwrite was interrupted"):
            read()


@pytest.mark.parametrize("count", [3, 7], ids=["shorter", "longer"])
def test_a_part_that_is_replaced_after_opening_is_noticed(count, tmp_path, tiny_checkpoint):
    spec, tar, out = ClipSpec(tiny_checkpoint, precision="fp32"), tmp_path / "a.tar", str(tmp_path / "out")
    embed_shards([make_tar(tar, 5)], out, spec)
    dataset = Dataset.open(out)
    assert dataset.embeddings("image")[1].shape == (5, 48)
    embed_shards([make_tar(tar, count)], out, spec)
    with pytest.raises(ValueError, match="was replaced since the dataset was opened; open it again"):
        dataset.embeddings("image")


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200] + b"x" * 3000 + path.read_bytes()[3200:]), "is damaged"),
        (lambda path: path.unlink(), "is gone"),
    ],
    ids=["damaged", "gone"],
)
@pytest.mark.parametrize("kind", ["embeddings", "labels/animals"])
def test_a_damaged_part_is_one_sentence(kind, damage, said, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    dataset = Dataset.open(str(out))
    assert dataset.to_table(labels=["animals"]).num_rows == 8
    damage(next((out / kind).glob("a-*.parquet")))
    with pytest.raises(ValueError, match=f"(file of the part a-.* {said}|has no labels/animals for 1 of 3 parts)"):
        dataset.to_table(labels=["animals"])


def test_settings_without_a_model_are_a_damaged_dataset(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    content = json.loads((out / "_dataset.json").read_text())
    del content["model"]
    (out / "_dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="_dataset.json is damaged"):
        Dataset.open(str(out))
