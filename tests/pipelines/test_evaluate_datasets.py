"""Evaluate: odd, damaged and unfinished datasets."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated import ASKED, one, with_one_thread, write, write_classes  # noqa: F401

from benchmarks.datasets import write_rows
from clip_transforms import EvaluateEmbeddings, evaluate_embeddings
from clip_transforms.parts.dataset import DatasetError
from pipelines import evaluate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


# Odd datasets


def test_labels_that_are_missing_do_not_matter(tmp_path):
    """They are computed from the embeddings."""
    out = write(tmp_path / "out")
    assert not (Path(out) / "labels" / "animals").exists()
    metrics = evaluate_embeddings(out, tmp_path / "e", **ASKED)
    assert metrics["zeroshot"]["taxonomies"]["animals"]["acc1"] == 3 / 5


def test_a_dataset_without_success_is_evaluated_with_a_warning(tmp_path, caplog):
    out = write(tmp_path / "out")
    (Path(out) / "_SUCCESS").unlink()
    evaluate_embeddings(out, tmp_path / "e", **ASKED)
    assert "has no _SUCCESS" in caplog.text


def test_two_fingerprints_are_refused(tmp_path):
    out = write(tmp_path / "out")
    made = json.loads((Path(out) / "_dataset.json").read_text())
    made["settings"]["model"] = "1" * 64
    (Path(out) / "_dataset.json").write_text(json.dumps(made))
    with pytest.raises(DatasetError, match="made with other settings than the dataset has now"):
        evaluate_embeddings(out, tmp_path / "e", **ASKED)


def test_a_part_that_is_replaced_meanwhile_is_one_sentence(tmp_path, monkeypatch):
    out = write(tmp_path / "out")
    transform = EvaluateEmbeddings(out, tmp_path / "e", **ASKED)
    begin = EvaluateEmbeddings.begin

    def replaced(self, plan, folder):
        write_rows(
            out, [{"image_embedding": one(1), "animal": ["cat"], "who": ["a"], "d": 5}], columns=["animal", "who"]
        )
        return begin(self, plan, folder)

    monkeypatch.setattr(EvaluateEmbeddings, "begin", replaced)
    with pytest.raises(DatasetError, match="was replaced while this command read the dataset"):
        transform.run_here()


@pytest.mark.parametrize("column", ["image_embedding", "caption_embedding"])
def test_a_dataset_of_one_modality_or_of_nothing_has_no_numbers(tmp_path, column, capsys, without_beam):
    parts = [{column: one(0, 1), "animal": ["cat", "dog"], "d": 5}, {column: [], "d": 5}]
    for number, of in enumerate((parts, parts[1:])):
        out = write_rows(tmp_path / f"out{number}", of, columns=["animal"])
        write_classes(out, "animals")
        argv = ["--input", out, "--output", str(tmp_path / f"e{number}"), "--truth_column", "animal"]
        assert evaluate.main([*argv, "--taxonomy", "animals", "--measure", "zeroshot", "retrieval", "probe"]) == 0
        metrics = json.loads((tmp_path / f"e{number}" / "metrics.json").read_text())
        assert metrics["retrieval"]["image_to_caption"]["recall@1"] is None and metrics["probe"]["c"] is None
        scored = 2 if column == "image_embedding" and not number else 0
        assert metrics["zeroshot"]["rows"]["scored"] == scored
        printed = capsys.readouterr().out
        assert ("note: no row can be scored" in printed) is (scored == 0)
        assert "note: no image has a caption here" in printed and "note: there is no probe" in printed


def test_float16_embeddings_are_scaled_as_labels_scale_them(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    parts = [{"image_embedding": vectors.astype(np.float16), "cls": [0] * 40}]
    out = write_rows(tmp_path / "out", parts, columns=["cls:int32"], embedding_dtype="float16")
    write_classes(out, "animals")
    found = evaluate_embeddings(out, tmp_path / "e")["zeroshot"]["taxonomies"]["animals"]
    assert found["acc1"] == np.mean(vectors.astype(np.float16).argmax(1) == 0)
