"""The linear probe of an evaluation."""

import numpy as np
import pytest
from evaluated import made_dataset, made_trained, one, table, with_one_thread  # noqa: F401
from sklearn.linear_model import LogisticRegression

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, evaluate_embeddings, filter_embeddings
from clip_transforms.metrics.probe import GRID
from clip_transforms.select.sample import sampled
from pipelines import evaluate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


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
