"""The linear probe against worked examples and scikit-learn's own fits."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from clip_transforms.metrics.probe import GRID, MOST_FITS, Split, fit, probe

EXAMPLES = json.loads((Path(__file__).parent / "metric_examples.json").read_text())


@pytest.fixture(autouse=True)
def one_thread():
    """The tests' products are small: several threads of BLAS would only wait for each other."""
    with threadpool_limits(1, "blas"):
        yield


def unit(rng, *shape):
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_worked_examples_of_the_linear_probe():
    example = EXAMPLES["linear_probe"]
    for of in (example["binary"], example["multi"]):
        x, y = np.array(of["X"]), np.array(of["y"])
        found = fit(Split(x, y), of.get("C"))
        assert found.coef_ == pytest.approx(np.array(of["coef"]), abs=2e-4)
        assert found.intercept_ == pytest.approx(np.array(of["intercept"]), abs=2e-4)
    weights, logits = found.coef_, found.decision_function(x)
    entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    assert 0.5 * (weights**2).sum() + of["C"] * entropy.sum() == pytest.approx(of["objective"], abs=1e-6)
    assert GRID[::16] == pytest.approx(example["openai_C"]) and len(GRID) == example["n_values"]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(9)
    centres, classes = unit(rng, 3, 8), rng.integers(0, 3, 150)
    vectors = centres[classes] + 1.6 * unit(rng, 150, 8)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return [Split(vectors[of::3], classes[of::3]) for of in range(3)]


def test_c_and_accuracy_are_those_of_scikit_learns_own_fits(samples):
    train, validation, test = samples
    calls = []
    found = probe(train, validation, lambda: calls.append(1))

    def accuracy(c):
        model = LogisticRegression(C=c, max_iter=1000).fit(train.vectors.astype(float), train.classes)
        return model.score(validation.vectors, validation.classes)

    tried = {c: accuracy(c) for c in GRID[::16]}
    step, best = 8, 16 * max(range(7), key=lambda i: (tried[GRID[16 * i]], -i))
    while step:
        for place in (best - step, best + step):
            if 0 <= place < 97:
                tried[GRID[place]] = accuracy(GRID[place])
        best = max((i for i in range(97) if GRID[i] in tried), key=lambda i: (tried[GRID[i]], -i))
        step //= 2
    assert found.tried == tried and found.model.C == GRID[best] and len(calls) == len(tried) + 1 <= MOST_FITS
    both = train + validation
    own = LogisticRegression(C=GRID[best], max_iter=1000).fit(both.vectors.astype(float), both.classes)
    assert np.array_equal(found.model.predict(test.vectors), own.predict(test.vectors)) and found.converged
    assert found.model.coef_ == pytest.approx(own.coef_, rel=1e-6)


def test_of_equally_good_values_the_smallest_c_wins(samples):
    train = samples[0]
    far = Split(train.vectors[:1], np.array([9]))  # every C is wrong
    found = probe(train, far)
    assert (
        found.model.C == GRID[0]
        and set(found.tried.values()) == {0}
        and found.tried.keys() <= set(GRID[:17]) | set(GRID[::16])
    )
