"""The labels of a batch are those of the plain formula, from the embeddings as they are stored."""

import numpy as np
import pyarrow as pa
import pytest

from clip_transforms.labels.batch import Classifier, label_batch
from schemas.embeddings import embeddings_schema
from schemas.labels import labels_schema

D = 48


def unit_rows(count, seed):
    rows = np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def classifier(k):
    return Classifier(tuple(f"class {i}" for i in range(k)), unit_rows(k, 0), 100.0)


def stored(embeddings, dtype="float32"):
    """Rows of a part; None stands for a sample without an image embedding."""
    rows = [
        {"key": f"k{i}", "shard": "s", "row": 10 + i, "image_embedding": x if x is None else x.astype(dtype)}
        for i, x in enumerate(embeddings)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=embeddings_schema(dtype))


A, B, C = unit_rows(3, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 40])
def test_labels_are_those_of_the_plain_formula(k, dtype):
    classes, rows = classifier(k), stored([A, None, B, None, C], dtype)
    labels = label_batch(rows, classes, 5)
    assert labels.schema.equals(labels_schema())
    assert labels.column("row").to_pylist() == [10, 11, 12, 13, 14]
    assert labels.column("label").is_valid().to_pylist() == [True, False, True, False, True]
    for row, label in zip(rows.to_pylist(), labels.to_pylist(), strict=True):
        if row["image_embedding"] is None:
            assert all(label[name] is None for name in ("label", "probability", "similarity", "margin", "top"))
            continue
        x = np.array(row["image_embedding"], np.float64)
        cosines = classes.weights.astype(np.float64) @ x / np.linalg.norm(x)
        order = np.argsort(-cosines)
        probabilities = np.exp(100 * (cosines - cosines.max()))
        probabilities /= probabilities.sum()
        assert label["label"] == f"class {order[0]}"
        assert label["similarity"] == pytest.approx(cosines[order[0]], abs=1e-6)
        assert label["probability"] == pytest.approx(probabilities[order[0]], abs=1e-4)
        assert label["margin"] == (None if k == 1 else pytest.approx(cosines[order[0]] - cosines[order[1]], abs=1e-6))
        assert [t["label"] for t in label["top"]] == [f"class {i}" for i in order[: min(k, 5)]]
        assert [t["probability"] for t in label["top"]] == pytest.approx(probabilities[order[: min(k, 5)]], abs=1e-4)


def test_a_batch_without_any_image_embedding_has_rows_of_nulls():
    labels = label_batch(stored([None, None]), classifier(3), 5)
    assert labels.schema.equals(labels_schema()) and labels.column("row").to_pylist() == [10, 11]
    assert [labels.column(name).null_count for name in ("label", "top", "margin")] == [2, 2, 2]


def test_one_label_in_top_still_has_its_margin():
    first, _ = label_batch(stored([A, B]), classifier(4), 1).to_pylist()
    assert len(first["top"]) == 1 and first["margin"] > 0
