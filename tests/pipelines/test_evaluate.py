"""Evaluate: what is measured, of which rows, for whom; the same on every runner, and what is refused."""

import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from test_filter import files
from threadpoolctl import threadpool_limits

from benchmarks.datasets import SETTINGS, write_rows
from clip_transforms import Dataset, EvaluateEmbeddings, evaluate_embeddings, filter_embeddings
from clip_transforms.clip.taxonomy import Taxonomy, TaxonomyError
from clip_transforms.labels.classes import CLASSES
from clip_transforms.metrics.intervals import wilson
from clip_transforms.metrics.probe import GRID
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.parts.manifest import OutputError
from clip_transforms.select.sample import sampled
from pipelines import evaluate
from pipelines.evaluation_lines import evaluation_lines
from schemas.captions import captions_schema
from schemas.provenance import encode_footer

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(autouse=True)
def one_thread():
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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


ASKED = {"truth_column": "animal", "group_column": "who"}


def table(folder, name, **wanted):
    """Rows of a table of an evaluation."""
    rows = pq.read_table(folder / f"per_{name}.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


# Zero-shot labels


def test_labels_are_compared_with_the_truth_and_every_row_is_counted(dataset, tmp_path):
    metrics = evaluate_embeddings(dataset, tmp_path / "e", **ASKED)
    assert metrics == json.loads((tmp_path / "e" / "metrics.json").read_text()) | {
        "zeroshot": metrics["zeroshot"]  # tuples are lists in JSON
    }
    found = metrics["zeroshot"]
    rows = {"seen": 8, "not_selected": 0, "without_embedding": 1, "without_truth": 1, "unknown_truth": 1, "scored": 5}
    assert found["rows"] == rows | {"without_group": 1} and found["unknown_truth"] == {"zebra": 1}
    assert found["taxonomies"] == {
        "animals": {
            "classes": 5,
            "classes_with_samples": 3,
            "n": 5,
            "acc1": 3 / 5,
            "acc1_interval": wilson(3, 5),
            "acc5": 1.0,
            "acc5_interval": wilson(5, 5),
            "mean_per_class_recall": pytest.approx((1 / 2 + 1 + 1 / 2) / 3),
        }
    }
    assert (tmp_path / "e" / "_SUCCESS").exists()
    assert {path.name for path in (tmp_path / "e").iterdir()} - {"_temporary"} == {
        "_SUCCESS",
        "_command.json",
        "metrics.json",
        "per_class.parquet",
        "per_group.parquet",
    }


def test_a_class_has_its_recall_its_precision_and_the_labels_that_it_got(dataset, tmp_path):
    evaluate_embeddings(dataset, tmp_path / "e", **ASKED)
    rows = {row["class"]: row for row in table(tmp_path / "e", "class")}
    assert [*rows] == list(NAMES) and [row["class_index"] for row in rows.values()] == list(range(5))
    numbers = {name: (row["n"], row["labelled"], row["hits"], row["recall"]) for name, row in rows.items()}
    assert numbers["cat"] == (2, 2, 1, 0.5) and numbers["dog"] == (1, 2, 1, 1) and numbers["fox"] == (2, 1, 1, 0.5)
    assert numbers["owl"] == (0, 0, 0, None) and rows["owl"]["precision"] is rows["owl"]["recall_low"] is None
    assert rows["dog"]["precision"] == 0.5
    assert rows["cat"]["labels"] == [{"label": "cat", "n": 1}, {"label": "dog", "n": 1}]
    assert (rows["cat"]["recall_low"], rows["cat"]["recall_high"]) == wilson(1, 2)


def test_a_group_has_every_metric_with_its_interval_and_the_spread(dataset, tmp_path):
    metrics = evaluate_embeddings(dataset, tmp_path / "e", **ASKED)
    a, b = table(tmp_path / "e", "group", metric="acc1")
    assert (a["group"], a["n"], a["hits"], a["value"]) == ("a", 3, 2, 2 / 3)
    assert (b["group"], b["n"], b["hits"], b["value"]) == ("b", 2, 1, 1 / 2)
    assert (a["low"], a["high"]) == wilson(2, 3) and a["spread"] == b["spread"] == 2 / 3 - 1 / 2
    rates = {
        (row["class"], row["group"]): (row["hits"], row["n"])
        for row in table(tmp_path / "e", "group", metric="label_rate")
    }
    assert rates["cat", "a"] == (2, 3) and rates["fox", "b"] == (2, 3) and rates["owl", "a"] == (0, 3)
    recalls = {(row["class"], row["group"]): row["value"] for row in table(tmp_path / "e", "group", metric="recall")}
    assert recalls == {
        ("cat", "a"): 1,
        ("cat", "b"): 0,
        ("dog", "a"): 1,
        ("dog", "b"): None,
        ("fox", "a"): 0,
        ("fox", "b"): 1,
    }
    assert metrics["groups"]["column"] == "who"
    assert {
        "measure": "zeroshot",
        "taxonomy": "animals",
        "metric": "acc1",
        "spread": 2 / 3 - 1 / 2,
        "largest": "a",
        "smallest": "b",
    } in metrics["groups"]["spreads"]


def test_without_a_truth_groups_show_the_labels_that_they_get(dataset, tmp_path):
    metrics = evaluate_embeddings(dataset, tmp_path / "e", group_column="who")
    (found,) = metrics["zeroshot"]["taxonomies"].values()
    assert found["acc1"] is found["mean_per_class_recall"] is None and metrics["zeroshot"]["rows"]["without_truth"] == 7
    rates = {(row["class"], row["group"]): row["hits"] for row in table(tmp_path / "e", "group", metric="label_rate")}
    assert rates["cat", "a"] == 2 and rates["dog", "b"] == 1


def test_without_a_truth_no_table_of_accuracies_is_printed(dataset, tmp_path, capsys, without_beam):
    assert evaluate.main(["--input", dataset, "--output", str(tmp_path / "e"), "--group_column", "who"]) == 0
    printed = capsys.readouterr().out
    assert "note: no truth was given, so there are no accuracies, only the labels" in printed
    assert "how often a group gets each label of animals, by who" in printed
    assert "top 1" not in printed and "can be scored" not in printed


def test_rows_without_a_group_are_counted_by_every_measure(dataset, tmp_path):
    found = evaluate_embeddings(dataset, tmp_path / "e", measure=["zeroshot", "retrieval"], **ASKED)
    assert [found[of]["rows"]["without_group"] for of in ("zeroshot", "retrieval")] == [1, 1]
    alone = evaluate_embeddings(dataset, tmp_path / "f", measure="zeroshot", truth_column="animal")
    assert "without_group" not in alone["zeroshot"]["rows"]


def test_two_taxonomies_are_compared_over_the_same_rows(tmp_path):
    out = write(tmp_path / "out")
    turned = WEIGHTS[[1, 0, 2]]
    write_classes(out, "fewer", ("cat", "dog", "wolf"), turned)
    metrics = evaluate_embeddings(out, tmp_path / "e", taxonomy=["animals", "fewer"], truth_column="animal")
    found = metrics["zeroshot"]
    assert found["rows"]["scored"] == 3 and found["unknown_truth"] == {"fox": 2, "zebra": 1}
    assert {name: (of["n"], of["acc1"]) for name, of in found["taxonomies"].items()} == {
        "animals": (3, 2 / 3),
        "fewer": (3, 1 / 3),
    }
    assert found["taxonomies"]["fewer"]["acc5"] is None


@pytest.mark.parametrize(
    "type_, values",
    [
        ("int32", [[0, 0, 1, None], [], [2, 99, 2, 0]]),
        ("string", [["0", "0", "1", ""], [], ["2", "99", "2", "0"]]),
        ("float64", [[0, 0, 1, float("nan")], [], [2, 7.5, 2, 0]]),
        ("string", [["0.0", "0.00", "1.0", None], [], ["2.0", "7.5", "2.0", "0.0"]]),
        ("string", TRUTH),
    ],
    ids=["index", "index as text", "index as float", "index as pandas writes it", "name"],
)
def test_a_truth_is_a_name_or_an_index(tmp_path, type_, values):
    out = write_rows(
        tmp_path / "out",
        [{"image_embedding": one(*of), "cls": v, "d": 5} for of, v in zip(LABELS, values, strict=True)],
        columns=[f"cls:{type_}"],
    )
    write_classes(out, "animals")
    found = evaluate_embeddings(out, tmp_path / "e")["zeroshot"]  # cls is taken without being named
    assert found["rows"]["scored"] == 5 and found["taxonomies"]["animals"]["acc1"] == 3 / 5
    assert found["rows"]["unknown_truth"] == found["rows"]["without_truth"] == 1


def test_digits_are_names_where_classes_are_called_so(tmp_path):
    out = write_rows(
        tmp_path / "out", [{"image_embedding": one(0, 1, 2), "cls": ["2", "1", "0"], "d": 5}], columns=["cls"]
    )
    write_classes(out, "digits", ("2", "1", "0", "x", "y"))
    assert evaluate_embeddings(out, tmp_path / "e")["zeroshot"]["taxonomies"]["digits"]["acc1"] == 1


# Files with the truth


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


# Retrieval


def clip_benchmark_recall(queries, candidates, positives, k):
    best = torch.topk(torch.from_numpy(queries @ candidates.T), k, dim=1)[1]
    return (torch.from_numpy(positives).gather(1, best).sum(1) > 0).float().mean().item()


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_captions_and_images_find_each_other_as_in_clip_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_transforms.run.retrieval_steps._QUERIES", 7)
    monkeypatch.setattr("clip_transforms.run.retrieval_steps._CANDIDATES", 9)
    monkeypatch.setattr("clip_transforms.run.evaluate_steps.RUN_ROWS", 20)
    rng = np.random.default_rng(2)
    images = unit(rng, 50, 8)
    captions = images + 0.9 * unit(rng, 50, 8)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    of = {"image_embedding": images.tolist(), "caption_embedding": captions.tolist()}
    of["image_embedding"][3] = of["caption_embedding"][31] = None
    parts = [{name: values[i : i + 10] for name, values in of.items()} | {"d": 8} for i in range(0, 50, 10)]
    found = evaluate_embeddings(write_rows(tmp_path / "out", parts), tmp_path / "e")["retrieval"]
    assert found["rows"] == {
        "seen": 50,
        "not_selected": 0,
        "images": 49,
        "captions": 49,
        "without_caption": 1,
        "without_image": 1,
    }
    has_image, has_caption = np.arange(50) != 3, np.arange(50) != 31
    for direction, queries, candidates, others in (
        ("image_to_caption", images, captions, has_caption),
        ("caption_to_image", captions, images, has_image),
    ):
        asked, offered = np.flatnonzero(has_image & has_caption), np.flatnonzero(others)
        assert found[direction]["n"] == 48 and found[direction]["candidates"] == 49
        positives = asked[:, None] == offered[None]
        for k in (1, 5, 10):
            expected = clip_benchmark_recall(queries[asked], candidates[offered], positives, k)
            assert found[direction][f"recall@{k}"] == pytest.approx(expected, abs=1e-6)


def write_captions(out, part, number, rows, vectors, d):
    """The file of all captions of a part, as `embed --captions all` writes it."""
    footer = pq.ParquetFile(Path(out) / "embeddings" / f"{part}.parquet").metadata.metadata
    n = len(rows)
    shard = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int32()), [f"/shards/{number}.tar"])
    index = [rows[:i].count(row) for i, row in enumerate(rows)]
    columns = [
        [f"{r:06d}" for r in rows],
        shard,
        rows,
        index,
        ["x"] * n,
        [3] * n,
        [False] * n,
        vectors.tolist(),
        [0.1] * n,
    ]
    schema = captions_schema()
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    (Path(out) / "captions").mkdir(exist_ok=True)
    with pq.ParquetWriter(Path(out) / "captions" / f"{part}.parquet", schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({b"clip": footer[b"clip"]})


def test_any_of_several_captions_of_an_image_is_a_hit(tmp_path):
    rng = np.random.default_rng(3)
    images, owners = unit(rng, 24, 6), np.sort(rng.integers(0, 23, 80))  # the last image has no caption
    texts = images[owners] + 1.2 * unit(rng, 80, 6)
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    groups = ["a", "b", None] * 8
    parts = [{"image_embedding": images[i : i + 12], "who": groups[i : i + 12]} for i in (0, 12)]
    out = write_rows(tmp_path / "out", parts, columns=["who"])
    for number, part in enumerate(Dataset.open(out).parts):
        own = (owners >= 12 * number) & (owners < 12 * number + 12)
        write_captions(out, part, number, (owners[own] - 12 * number).tolist(), texts[own], 6)
    found = evaluate_embeddings(out, tmp_path / "e", measure="retrieval", group_column="who")["retrieval"]
    with_caption = np.unique(owners)
    assert found["rows"]["without_caption"] == 24 - len(with_caption) and found["rows"]["captions"] == 80
    positives = owners[:, None] == np.arange(24)
    for k in (1, 5, 10):
        to_image = clip_benchmark_recall(texts, images, positives, k)
        to_caption = clip_benchmark_recall(images[with_caption], texts, positives.T[with_caption], k)
        assert found["caption_to_image"][f"recall@{k}"] == pytest.approx(to_image, abs=1e-6)
        assert found["image_to_caption"][f"recall@{k}"] == pytest.approx(to_caption, abs=1e-6)
    by_group = {row["group"]: row["n"] for row in table(tmp_path / "e", "group", metric="caption_to_image recall@1")}
    assert by_group == {name: sum(groups[owner] == name for owner in owners) for name in ("a", "b")}
    selected = filter_embeddings(out, tmp_path / "s", where="who = 'a'") and tmp_path / "s"
    found = evaluate_embeddings(out, tmp_path / "a", measure="retrieval", selection=selected)["retrieval"]
    assert found["caption_to_image"]["n"] == by_group["a"] and found["image_to_caption"]["candidates"] == by_group["a"]
    assert found["caption_to_image"]["candidates"] == 8 and found["rows"]["not_selected"] == 16


# The probe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
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


def sklearns(out, split):
    """C, accuracy and predictions of scikit-learn's own fits: `split` is 0 to train, 1 to validate, 2 to test."""
    keys, vectors = Dataset.open(out).embeddings("image")
    truth = np.array(Dataset.open(out).to_table("animal")["animal"].to_pylist())
    x = [vectors[split == of].astype(float) for of in range(3)]
    y = [truth[split == of] for of in range(3)]

    def fits(c, *parts):
        return LogisticRegression(C=c, max_iter=1000).fit(
            np.concatenate([x[i] for i in parts]), np.concatenate([y[i] for i in parts])
        )

    tried = {place: fits(GRID[place], 0).score(x[1], y[1]) for place in range(0, 97, 16)}
    for step in (8, 4, 2, 1):
        best = max(tried, key=lambda place: (tried[place], -place))
        for place in (best - step, best + step):
            tried.setdefault(place, fits(GRID[place], 0).score(x[1], y[1]) if 0 <= place < 97 else -1)
    best = max(tried, key=lambda place: (tried[place], -place))
    return GRID[best], fits(GRID[best], 0, 1).score(x[2], y[2]), len(y[2])


def test_a_probe_has_the_c_and_the_accuracy_of_scikit_learns_own_fits(trained, tmp_path):
    names = [s.lower() for s in Dataset.open(trained).to_table("split")["split"].to_pylist()]
    c, accuracy, tests = sklearns(trained, np.array([("train", "val", "test", "other").index(s) for s in names]))
    asked = {"measure": "probe", "truth_column": "animal", "split_column": "split", "group_column": "who"}
    found = evaluate_embeddings(trained, tmp_path / "e", **asked)["probe"]
    assert (found["c"], found["acc1"], found["test"]) == (c, accuracy, tests)
    assert found["not_trained"] == ["owl"] and found["rows"]["without_split"] == 1 and found["converged"]
    assert found["train"] + found["validation"] + found["test"] == found["rows"]["scored"] == 179
    a, b = table(tmp_path / "e", "group", measure="probe", metric="acc1")
    assert a["n"] + b["n"] == tests and a["hits"] + b["hits"] == round(accuracy * tests)


def test_a_probe_splits_by_selection_or_by_seed(trained, tmp_path):
    filter_embeddings(trained, tmp_path / "s", where="split = 'Test'")
    asked = {"measure": "probe", "truth_column": "animal"}
    found = evaluate_embeddings(trained, tmp_path / "e", test=tmp_path / "s", seed=3, **asked)["probe"]
    names = Dataset.open(trained).to_table("split")["split"].to_pylist()
    validates = np.concatenate([sampled(f"/shards/{i}.tar", np.arange(60), 0.2, 4) for i in range(3)])
    split = np.where(np.array(names) == "Test", 2, validates.astype(int))
    assert (found["c"], found["acc1"], found["test"]) == sklearns(trained, split)
    found = evaluate_embeddings(trained, tmp_path / "f", test_fraction=0.3, **asked)["probe"]
    assert found["test"] == sum(sampled(f"/shards/{i}.tar", np.arange(60), 0.3, 0).sum() for i in range(3))


def test_a_probe_of_one_class_is_none(dataset, tmp_path):
    out = write_rows(
        tmp_path / "out", [{"image_embedding": one(0, 1, 2, 0), "animal": ["cat"] * 4, "d": 5}], columns=["animal"]
    )
    found = evaluate_embeddings(out, tmp_path / "e", measure="probe", truth_column="animal")["probe"]
    assert found["c"] is found["acc1"] is None and found["rows"]["scored"] == 4


@pytest.mark.parametrize(
    "classes, splits, why",
    [
        (["cat"] * 4, ["train", "val", "train", "test"], "its training samples are all of one class"),
        (["cat", "dog"] * 2, ["train", "val", "train", "val"], "no sample is left for test"),
        (["cat", "dog"] * 2, ["test"] * 4, "no sample is left for train and validation"),
    ],
    ids=["one class", "no test", "test alone"],
)
def test_a_probe_that_cannot_be_fitted_says_why(tmp_path, classes, splits, why, capsys, without_beam):
    part = {"image_embedding": one(0, 1, 2, 0), "animal": classes, "split": splits, "d": 5}
    out = write_rows(tmp_path / "out", [part], columns=["animal", "split"])
    argv = ["--input", out, "--output", str(tmp_path / "e"), "--measure", "probe", "--truth_column", "animal"]
    assert evaluate.main([*argv, "--split_column", "split"]) == 0
    assert f"note: there is no probe: {why}\n" in capsys.readouterr().out


# Runners


ALL = {"measure": ["zeroshot", "retrieval", "probe"], "taxonomy": "animals", **ASKED}


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "e"
    evaluate_embeddings(dataset, folder, **ALL)
    return files(folder)


def test_beam_in_this_process_gives_the_same_bytes(dataset, reference, tmp_path):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | EvaluateEmbeddings(dataset, tmp_path / "e", **ALL)
    assert files(tmp_path / "e") == reference


def test_the_portable_runner_with_workers_gives_the_same_bytes(dataset, service, tmp_path):
    """Without a probe, for which every worker would import scikit-learn first."""
    evaluate_embeddings(dataset, tmp_path / "here", **ALL | {"measure": ["zeroshot", "retrieval"]})
    argv = ["--input", dataset, "--output", tmp_path / "e", "--measure", "zeroshot", "retrieval"]
    argv += ["--taxonomy", "animals", "--truth_column", "animal", "--group_column", "who"]
    done = command("pipelines.evaluate", *argv, *service)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "e") == files(tmp_path / "here")


@pytest.mark.slow  # workers import scikit-learn, each for itself: ten seconds
@pytest.mark.timeout(200)
def test_a_probe_on_the_portable_runner_gives_the_same_bytes(dataset, reference, service, tmp_path):
    argv = ["--input", dataset, "--output", tmp_path / "e", "--measure", *ALL["measure"], "--taxonomy", "animals"]
    argv += ["--truth_column", "animal", "--group_column", "who"]
    done = command("pipelines.evaluate", *argv, *service, timeout=150)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "e") == reference


@pytest.mark.parametrize("rows", [1, 100], ids=["part by part", "all parts together"])
def test_the_bytes_do_not_depend_on_how_parts_are_grouped(dataset, reference, tmp_path, monkeypatch, rows):
    monkeypatch.setattr("clip_transforms.run.evaluate_steps.RUN_ROWS", rows)
    evaluate_embeddings(dataset, tmp_path / "e", **ALL)
    assert files(tmp_path / "e") == reference


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_after_a_kill_the_same_command_ends_with_the_same_bytes(dataset, reference, tmp_path, monkeypatch, at):
    from clip_transforms.storage import writing

    real, count = writing.commit_file, [0]

    class Killed(BaseException):
        pass

    def commit(local, uri):
        count[0] += 1
        if count[0] == at and "_temporary" not in uri:
            raise Killed
        real(local, uri)

    monkeypatch.setattr(writing, "commit_file", commit)
    monkeypatch.setattr("clip_transforms.storage.commit_file", commit)
    try:
        evaluate_embeddings(dataset, tmp_path / "e", **ALL)
    except Killed:
        assert not (tmp_path / "e" / "_SUCCESS").exists()
    monkeypatch.undo()
    evaluate_embeddings(dataset, tmp_path / "e", **ALL)
    assert files(tmp_path / "e") == reference


def test_a_taxonomy_alone_asks_for_zeroshot_which_needs_a_truth(dataset, tmp_path):
    with pytest.raises(ValueError, match="--measure zeroshot needs the right classes; give --truth_column NAME"):
        evaluate_embeddings(dataset, tmp_path / "e", taxonomy="animals")


def test_the_most_frequent_unknown_classes_are_named_and_more_are_hinted_at():
    unknown = {"ant": 1, "bee": 2, "gnat": 9, "wasp": 3}
    found = {"rows": {"rows": 15, "unknown_truth": 15}, "unknown_truth": unknown, "taxonomies": {}}
    assert "'gnat' (9), 'wasp' (3), 'bee' (2) …" in "\n".join(
        evaluation_lines("e", {"made_by": {"truth": {}}, "zeroshot": found})
    )


# What is printed


PRINTED = """evaluated in {e} (metrics.json, per_class.parquet, per_group.parquet)

zero-shot labels: 8 rows = 5 scored + 1 without an image embedding + 1 without a truth + 1 of an unknown class
  taxonomy  classes   top 1     95 % interval    top 5  mean recall
  animals         5  60.0 %  23.1 % to 88.2 %  100.0 %       66.7 %
note: classes of the truth that a taxonomy lacks, and that are not scored: 'zebra' (1)

warning: CLIP's accuracies differ between groups of people, and the choice of classes moves the differences.
Its authors rule out surveillance, the recognition of faces, and any use that was not tested in its own context;
read docs/model-card.md before you rely on a number below.

zero-shot labels of animals, by who, with 95 % intervals:
  who     n               top 1                 top 5  mean recall
  a       3  66.7 % (20.8–93.9)  100.0 % (43.9–100.0)       66.7 %
  b       2   50.0 % (9.5–90.5)  100.0 % (34.2–100.0)       50.0 %
  spread                   16.7                   0.0         16.7

how often a group gets each label of animals, by who:
  who     n     cat     dog     fox    owl    pig
  a       3  66.7 %  33.3 %   0.0 %  0.0 %  0.0 %
  b       3   0.0 %  33.3 %  66.7 %  0.0 %  0.0 %
  spread       66.7     0.0    66.7    0.0    0.0
note: 1 row without a who, in no group
"""


def test_tables_are_printed_that_a_person_can_read(dataset, tmp_path, capsys, without_beam):
    argv = ["--input", dataset, "--output", str(tmp_path / "e"), "--truth_column", "animal", "--group_column", "who"]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed == PRINTED.format(e=tmp_path / "e")
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 120
    assert evaluate.main(argv) == 0 and capsys.readouterr().out == f"{printed}nothing was left to do\n"
    (tmp_path / "e" / "per_class.parquet").unlink()
    assert evaluate.main(argv) == 0 and capsys.readouterr().out == printed


def test_tables_stay_narrow_with_many_classes_and_groups_and_control_no_terminal(tmp_path, capsys, without_beam):
    names, weights = [f"a class whose number is {i}" for i in range(30)], np.eye(30, dtype=np.float32)
    groups = ["b\x1b[31mred", "", "x" * 60, *map(str, range(17))] * 6
    parts = [{"image_embedding": weights[np.arange(120) % 29], "cls": [i % 29 for i in range(120)], "who": groups}]
    out = write_rows(tmp_path / "out", parts, columns=["cls:int32", "who"])
    write_classes(out, "many", names, weights)
    assert evaluate.main(["--input", out, "--output", str(tmp_path / "e"), "--group_column", "who"]) == 0
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert max(map(len, lines)) <= 120 and all(line.isprintable() for line in lines)
    (title,) = [line for line in lines if line.startswith("how often")]
    assert title == "how often a group gets each label of many, by who, the 4 of 30 that differ most:"
    first = [line.split()[0] for line in lines[lines.index(title) + 2 :]]
    assert first == ['""', "b\\x1b[31mred", "x" * 23 + "…", *map(str, range(9)), "spread", "note:"]
    assert lines[-1] == "note: 8 smaller groups in per_group.parquet; the spread is over all"


# What is refused


def test_another_command_over_an_output_is_refused_and_overwrite_replaces_it(dataset, reference, tmp_path):
    evaluate_embeddings(dataset, tmp_path / "e", truth_column="animal")
    with pytest.raises(OutputError, match="made by another command: .*group_column was not given, now 'who'"):
        evaluate_embeddings(dataset, tmp_path / "e", **ASKED)
    evaluate_embeddings(dataset, tmp_path / "e", overwrite=True, **ALL)
    assert files(tmp_path / "e") == reference


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"measure": "zeroshot"}, "--measure zeroshot needs the right classes; give --truth_column NAME, or --truth"),
        ({"measure": "probe"}, "--measure probe needs the right classes"),
        ({"measure": "zero"}, "--measure is 'zero', but it must be one or more of zeroshot, retrieval, probe"),
        ({"truth_column": "animals"}, "--truth_column is 'animals', which .* does not have; its columns are key, "),
        ({"group_column": "image_embedding"}, "--group_column is 'image_embedding', which .* does not have"),
        ({"truth_column": "animal", "truth": "x.csv"}, "--truth and --truth_column are both given; give one of them"),
        ({"truth": "/nowhere.csv"}, "--truth /nowhere.csv does not exist"),
        ({"truth": "/x.json"}, "--truth /x.json must be a .parquet or .csv file"),
        (
            {"truth_column": "animal", "taxonomy": "plants"},
            "--taxonomy plants is neither a file nor a taxonomy of .*: its taxonomies are animals",
        ),
        ({"truth_column": "animal", "taxonomy": ["animals", "animals"]}, "--taxonomy animals is given 2 times"),
        (
            {"truth_column": "who"},
            "--truth_column who holds 'a', which is no class of taxonomy animals, nor is any other value",
        ),
        ({"truth_column": "animal", "seed": 1}, "--seed is for --measure probe; omit it, or add probe"),
        (
            {"measure": "probe", "truth_column": "animal", "test_fraction": 1.5},
            "--test_fraction is 1.5, but .* must lie in",
        ),
        (
            {"measure": "retrieval", "truth_column": "animal"},
            "--truth_column is for --measure zeroshot and probe; omit it",
        ),
        ({"measure": "retrieval", "taxonomy": "animals"}, "--taxonomy is for --measure zeroshot and probe; omit it"),
        (
            {"measure": "probe", "truth_column": "animal", "split_column": "who", "test": "x"},
            "--split_column and --test are given; give one of them",
        ),
        (
            {"measure": "probe", "truth_column": "animal", "split_column": "who"},
            "--split_column who holds 'a', but it must say train, val or test",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_measured_is_one_sentence(dataset, tmp_path, asked, said):
    with pytest.raises(ValueError, match=said) as refusal:
        evaluate_embeddings(dataset, tmp_path / "e", **asked)
    assert "\n" not in str(refusal.value) and not (tmp_path / "e").exists()


def test_test_rows_are_refused_by_the_name_of_their_flag(trained, tmp_path):
    asked = {"measure": "probe", "truth_column": "animal"}
    with pytest.raises(ValueError, match="--test /nowhere does not exist"):
        evaluate_embeddings(trained, tmp_path / "e", test="/nowhere", **asked)
    filter_embeddings(trained, tmp_path / "s", where="split = 'Test'")
    with pytest.raises(OutputError, match="--output .* and --test .* lie in each other"):
        evaluate_embeddings(trained, tmp_path / "s", test=tmp_path / "s", overwrite=True, **asked)
    assert (tmp_path / "s" / "selection.json").exists()


def test_a_taxonomy_must_be_named_where_there_are_several_or_none(tmp_path):
    out = write(tmp_path / "out")
    write_classes(out, "others")
    with pytest.raises(TaxonomyError, match="--taxonomy is missing, and .* has several: animals, others; name one"):
        evaluate_embeddings(out, tmp_path / "e", truth_column="animal")
    bare = write_rows(tmp_path / "bare", [{"image_embedding": one(0), "animal": ["cat"], "d": 5}], columns=["animal"])
    with pytest.raises(TaxonomyError, match="--taxonomy is missing, and .* has none; give a file"):
        evaluate_embeddings(bare, tmp_path / "e", truth_column="animal")
    (Path(out) / "taxonomies" / "others.parquet").unlink()
    with pytest.raises(
        TaxonomyError, match="others.parquet is gone or of other classes; give the file of the taxonomy"
    ):
        evaluate_embeddings(out, tmp_path / "e", truth_column="animal", taxonomy="others")


def test_too_many_groups_are_refused(tmp_path):
    parts = [{"image_embedding": one(*[0] * 250), "who": [str(i) for i in range(250)], "d": 5}]
    out = write_rows(tmp_path / "out", parts, columns=["who"])
    write_classes(out, "animals")
    with pytest.raises(
        ValueError, match="--group_column who has 250 different values in one part alone, but 200 groups"
    ):
        evaluate_embeddings(out, tmp_path / "e", group_column="who")


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
