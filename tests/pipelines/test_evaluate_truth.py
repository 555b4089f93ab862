"""The truth of an evaluation: files, and samples of several classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluated import GROUPS, LABELS, NAMES, TRUTH, made_dataset, one, table, with_one_thread, write_classes  # noqa: F401
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.datasets import write_rows
from clip_transforms import evaluate_embeddings

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


def csv(path, text):
    path.write_text(text)
    return path


def by_key(path, values, column="class"):
    rows = [
        (f"{part}-{row}", value) for part, of in enumerate(values) for row, value in enumerate(of) if value is not None
    ]
    pq.write_table(pa.table({"key": [key for key, _ in rows], column: [value for _, value in rows]}), path)
    return path


KEYS = {"key": [[f"{part}-{row}" for row in range(len(of))] for part, of in enumerate(TRUTH)]}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    parts = [
        {"image_embedding": one(*of), "key": key, "who": who, "d": 5}
        for of, key, who in zip(LABELS, KEYS["key"], GROUPS, strict=True)
    ]
    out = write_rows(tmp_path_factory.mktemp("keyed") / "out", parts, columns=["who"])
    write_classes(out, "animals")
    return out


def test_a_file_names_classes_by_key_or_by_shard_and_row(keyed, tmp_path):
    rows = [(part, row, value) for part, of in enumerate(TRUTH) for row, value in enumerate(of)]
    text = (
        "shard,row,class\n" + "".join(f"/shards/{p}.tar,{r},{v or ''}\n" for p, r, v in rows) + "/shards/9.tar,0,cat\n"
    )
    given = [by_key(tmp_path / "t.parquet", TRUTH), csv(tmp_path / "t.csv", text)]
    given.append(
        csv(
            tmp_path / "k.csv",
            "key,class\n" + "".join(f"{p}-{r},{v or ''}\n" for p, r, v in rows) + "9-9,cat\n0-0,cat\n",
        )
    )
    found = [evaluate_embeddings(keyed, tmp_path / str(i), truth=path)["zeroshot"] for i, path in enumerate(given)]
    assert found[0]["taxonomies"]["animals"]["acc1"] == 3 / 5 and found[0]["rows"]["scored"] == 5
    assert found == [found[0]] * 3


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_spreadsheet_may_separate_columns_in_its_own_way(keyed, tmp_path, separator):
    text = "key,class\n0-0,cat\n0-1,dog\n"
    found = [
        evaluate_embeddings(keyed, tmp_path / name, truth=csv(tmp_path / f"{name}.csv", text.replace(",", by)))
        for name, by in (("commas", ","), ("other", separator))
    ]
    assert found[0]["zeroshot"] == found[1]["zeroshot"] and found[0]["zeroshot"]["rows"]["scored"] == 2


@pytest.mark.parametrize(
    "text, said",
    [
        ("a,b\n1,2\n", "must have the column key, or shard and row, and the column class .*, but it has a, b"),
        (
            "key,class\n0-0,cat\n0-0,dog\n",
            "gives two classes to key 0-0; if samples have several, call the column classes",
        ),
        ("key,classes\n0-0,cat\n0-0,dog\n", "names a sample twice: key 0-0; write its classes into one list"),
        ("key,class\n7,cat\n", "its first is key 7, and that of the dataset is key 0-0; write them alike"),
        (
            "key,class\n0-0,cats\n",
            "holds 'cats', which is no class of taxonomy animals, nor is any other value; is 'cat' meant",
        ),
        ('key,classes\n0-0,"[cat"\n', "is no JSON list; write one, or cat.dog"),
        ("shard,row,class\nx,one,cat\n", "cannot be read"),
        (
            "shard,row,class\n0.tar,0,cat\n",
            "its first is shard 0.tar, row 0, and that of the dataset is shard /",
        ),
        ("key,class,classes\n0-0,cat,dog\n", "has the columns class and classes; keep one of them"),
    ],
)
def test_a_wrong_file_is_one_sentence(keyed, tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as refusal:
        evaluate_embeddings(keyed, tmp_path / "e", truth=csv(tmp_path / "t.csv", text))
    assert "\n" not in str(refusal.value) and not (tmp_path / "e").exists()


def test_a_key_that_several_samples_have_is_refused(dataset, tmp_path):
    truth = csv(tmp_path / "t.csv", "key,class\n000001,cat\n")
    with pytest.raises(ValueError, match="names the key 000001, which .* has more than once; name samples by shard"):
        evaluate_embeddings(dataset, tmp_path / "e", truth=truth)


# Several classes


def several(n=60, k=5):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(n, k)).round(1).astype(np.float32) + 0.01
    truth = rng.random((n, k)) < 0.3
    truth[:, 3] = False  # a class without samples
    return vectors, truth


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagged")
    vectors, truth = several()
    keys = [f"k{i}" for i in range(60)]
    parts = [
        {"image_embedding": vectors[i : i + 20], "key": keys[i : i + 20], "who": ["a", "b"] * 10} for i in (0, 20, 40)
    ]
    out = write_rows(folder / "out", parts, columns=["who"])
    write_classes(out, "animals")
    lists = [[name for name, has in zip(NAMES, of, strict=True) if has] for of in truth]
    pq.write_table(pa.table({"key": keys, "classes": lists}), folder / "t.parquet")
    lines = "".join(f"{key},{'|'.join(of)}\n" for key, of in zip(keys, lists, strict=True))
    csv(folder / "t.csv", f"key,classes\n{lines}")
    return out


def test_a_sample_of_unknown_classes_alone_is_counted_and_never_taken_for_wrong(tagged, tmp_path):
    """An empty list is a truth: the sample has none of the classes."""
    truth = pq.read_table(Path(tagged).parent / "t.parquet")
    lists = truth["classes"].to_pylist()
    for name, first in (("less", None), ("more", ["wolf"]), ("blank", [""])):
        table = pa.table({"key": truth["key"], "classes": pa.array([first, *lists[1:]], pa.list_(pa.string()))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    less, more, blank = (
        evaluate_embeddings(tagged, tmp_path / f"e-{name}", truth=tmp_path / f"{name}.parquet")["zeroshot"]
        for name in ("less", "more", "blank")
    )
    numbers = [found["taxonomies"]["animals"]["mean_average_precision"] for found in (less, more, blank)]
    assert numbers[0] == numbers[1] == numbers[2]
    assert [found["rows"]["scored"] for found in (less, more, blank)] == [59, 59, 59]
    assert (less["rows"]["without_truth"], more["rows"]["unknown_truth"], blank["rows"]["unknown_truth"]) == (1, 1, 1)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_samples_with_several_classes_are_ranked_as_scikit_learn_does(tagged, tmp_path, monkeypatch, name):
    monkeypatch.setattr("clip_transforms.run.ranking_steps._SCORES", 700)  # two classes a task
    monkeypatch.setattr("clip_transforms.run.evaluate_steps.RUN_ROWS", 20)
    truth = Path(tagged).parent / name
    found = evaluate_embeddings(tagged, tmp_path / "e", truth=truth, group_column="who")["zeroshot"]
    vectors, flags = several()
    scores = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = [0, 1, 2, 4]
    aps = [average_precision_score(flags[:, c], scores[:, c]) for c in classes]
    aucs = [roc_auc_score(flags[:, c], scores[:, c]) for c in classes]
    of = found["taxonomies"]["animals"]
    assert of["mean_average_precision"] == np.mean(aps) and of["mean_roc_auc"] == np.mean(aucs)
    assert of["classes_without_samples"] == ["owl"] and of["positives"] == flags.sum()
    rows = table(tmp_path / "e", "class")
    assert [rows[c]["average_precision"] for c in classes] == aps and rows[3]["average_precision"] is None
    assert all(row["recall"] is row["labels"] is None for row in rows)
    some = table(tmp_path / "e", "group", metric="average_precision", **{"class": "dog"})
    assert [row["value"] for row in some] == [
        average_precision_score(flags[start::2, 1], scores[start::2, 1]) for start in (0, 1)
    ]
    assert some[0]["low"] is None
    rates = table(tmp_path / "e", "group", metric="label_rate")
    assert sum(row["hits"] for row in rates) == 60 == found["rows"]["scored"]
