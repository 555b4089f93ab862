"""Small datasets with a truth, for the tests of `evaluate`, and fixtures that make them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filtered import files
from threadpoolctl import threadpool_limits

from benchmarks.datasets import SETTINGS, write_rows
from clip_transforms import evaluate_embeddings
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.labels.classes import CLASSES
from schemas.provenance import encode_footer


@pytest.fixture(name="one_thread")
def with_one_thread():
    """The tests' products are small: several threads of BLAS would only wait for each other."""
    with threadpool_limits(1, "blas"):
        yield


NAMES = ("cat", "dog", "fox", "owl", "pig")
WEIGHTS = np.eye(5, dtype=np.float32)


def write_classes(out, name, names=NAMES, weights=WEIGHTS):
    """What `embed` leaves of a taxonomy beside its labels."""
    digest = Taxonomy.from_json(name, {"classes": list(names)}).digest
    made = json.loads((Path(out) / "_dataset.json").read_text())
    made["taxonomies"][name] = digest
    (Path(out) / "_dataset.json").write_text(json.dumps(made))
    maker = [digest, SETTINGS["model"], SETTINGS["activation"]]
    footer = {"taxonomy": name, "taxonomy_digest": digest, "maker": maker, "logit_scale": 4.6}
    rows = [{"class": n, "prompts": [n], "class_embedding": w.tolist()} for n, w in zip(names, weights, strict=True)]
    with pq.ParquetWriter(Path(out) / "taxonomies" / f"{name}.parquet", CLASSES) as writer:
        writer.write_table(pa.Table.from_pylist(rows, CLASSES))
        writer.add_key_value_metadata(encode_footer(footer))
    return digest


def one(*places):
    """Vectors near the classes at some places; None for a row without a picture."""
    return [None if place is None else (WEIGHTS[place] + 0.1).tolist() for place in places]


# cat, dog, …: the truth by part, the labels that vectors make, and groups.
TRUTH = [["cat", "cat", "dog", None], [], ["fox", "zebra", "fox", "cat"]]
LABELS = [[0, 1, 1, 0], [], [2, 2, 0, None]]
GROUPS = [["a", "b", "a", None], [], ["b", "b", "a", "a"]]


def write(folder, **columns):
    parts = [
        {
            "image_embedding": one(*labels),
            "caption_embedding": one(*labels[::-1]),
            "animal": truth,
            "who": groups,
            "d": 5,
            **{name: of[number] for name, of in columns.items()},
        }
        for number, (labels, truth, groups) in enumerate(zip(LABELS, TRUTH, GROUPS, strict=True))
    ]
    out = write_rows(folder, parts, columns=["animal", "who", *columns])
    write_classes(out, "animals")
    return out


@pytest.fixture(scope="module", name="dataset")
def made_dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


ASKED = {"truth_column": "animal", "group_column": "who"}


def table(folder, name, **wanted):
    """Rows of a table of an evaluation."""
    rows = pq.read_table(folder / f"per_{name}.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", name="trained")
def made_trained(tmp_path_factory):
    """Three classes in 180 rows; the third part has a class of its own."""
    rng = np.random.default_rng(4)
    classes = rng.integers(0, 3, 180)
    vectors = unit(rng, 3, 8)[classes] + 0.8 * unit(rng, 180, 8)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth, split = [NAMES[c] for c in classes], rng.choice(["train", "val", "Test"], 180).tolist()
    truth[170], split[170], split[0] = "owl", "Test", "other"
    parts = [
        {
            "image_embedding": vectors[i : i + 60],
            "animal": truth[i : i + 60],
            "split": split[i : i + 60],
            "who": ["a", "b"] * 30,
        }
        for i in (0, 60, 120)
    ]
    return write_rows(tmp_path_factory.mktemp("trained") / "out", parts, columns=["animal", "split", "who"])


ALL = {"measure": ["zeroshot", "retrieval", "probe"], "taxonomy": "animals", **ASKED}


@pytest.fixture(scope="module", name="reference")
def made_reference(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "e"
    evaluate_embeddings(dataset, folder, **ALL)
    return files(folder)
