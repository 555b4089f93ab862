"""Export: arguments, datasets and outputs that are refused."""

import json
import os
import sys
import tarfile

import numpy as np
import pytest
from conftest import command, files_of, make_tar
from exported import captions_alone, made_dataset  # noqa: F401

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, export_embeddings, filter_embeddings
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.run.export_steps import _Count
from pipelines import label

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


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
