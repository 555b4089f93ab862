"""Evaluate: zero-shot labels, and the same on every runner."""

import json

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command
from evaluated import (  # noqa: F401
    ALL,
    ASKED,
    LABELS,
    NAMES,
    TRUTH,
    WEIGHTS,
    made_dataset,
    made_reference,
    one,
    table,
    with_one_thread,
    write,
    write_classes,
)
from filtered import files

from benchmarks.datasets import write_rows
from clip_transforms import EvaluateEmbeddings, evaluate_embeddings
from clip_transforms.metrics.intervals import wilson
from pipelines import evaluate
from pipelines.evaluation_lines import evaluation_lines

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


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


def test_a_taxonomy_alone_asks_for_zeroshot_which_needs_a_truth(dataset, tmp_path):
    with pytest.raises(ValueError, match="--measure zeroshot needs the right classes; give --truth_column NAME"):
        evaluate_embeddings(dataset, tmp_path / "e", taxonomy="animals")


def test_the_most_frequent_unknown_classes_are_named_and_more_are_hinted_at():
    unknown = {"ant": 1, "bee": 2, "gnat": 9, "wasp": 3}
    found = {"rows": {"rows": 15, "unknown_truth": 15}, "unknown_truth": unknown, "taxonomies": {}}
    assert "'gnat' (9), 'wasp' (3), 'bee' (2) …" in "\n".join(
        evaluation_lines("e", {"made_by": {"truth": {}}, "zeroshot": found})
    )


# Runners


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
