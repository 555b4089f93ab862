"""The nearest rows of a matrix: those that a float64 product finds, whatever is allowed."""

import numpy as np
import pytest

from clip_transforms.select.nearest import NAME, nearest


def names_of(n, seed=0):
    rng = np.random.default_rng(seed)
    names = np.empty(n, NAME)
    names["shard"], names["row"] = rng.integers(0, 3, n), rng.permutation(n)
    return names


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.0], ids=["all", "half", "few", "none"])
@pytest.mark.parametrize("k", [1, 7, 5_000])
def test_the_nearest_of_the_allowed_rows_come_in_order(share, k):
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((3_000, 16)).astype(np.float32)
    matrix[1_000:1_400] = matrix[0]  # equal rows, which tie
    allowed, query, names = rng.random(3_000) < share, matrix[0].copy(), names_of(3_000)
    matrix[5], allowed[5] = np.nan, False
    exact = (matrix.astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    wanted = sorted(np.flatnonzero(allowed), key=lambda i: (-exact[i], names["shard"][i], names["row"][i]))[:k]
    longest = float(np.sqrt(np.nanmax((matrix**2).sum(axis=1))))
    places, similarities = nearest(query, matrix, allowed, longest, k, names)
    assert places.tolist() == wanted and similarities.tolist() == exact[wanted].tolist()
