"""Who stays of a group: the best score, then the most pixels, then the first."""

import math

import numpy as np
import pyarrow as pa
import pytest

from clip_transforms.select.disjoint_sets import DisjointSets, components
from clip_transforms.select.keepers import keepers

ROWS = [  # group, shard, row, clip_score, pixels
    (1, "b", 0, 0.3, 100),
    (1, "a", 5, 0.3, 200),
    (1, "a", 2, 0.2, 900),
    (2, "b", 1, None, 50),
    (2, "a", 9, math.nan, 60),
    (2, "a", 7, -0.5, None),
    (3, "z", 1, 0.25, None),
    (3, "y", 3, 0.25, None),
    (3, "y", 20, 0.25, None),
    (4, "a", 1, None, 10),
    (4, "a", 0, math.nan, 10),
]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        pytest.param("score", [1, 5, 7, 10], id="score"),
        pytest.param("pixels", [2, 4, 7, 10], id="pixels"),
        pytest.param("first", [2, 5, 7, 10], id="first"),
    ],
)
@pytest.mark.parametrize("order", [list(range(11)), list(range(10, -1, -1)), [3, 9, 0, 6, 1, 10, 5, 8, 2, 7, 4]])
def test_one_row_of_each_group_stays(keep, expected, order):
    groups, shards, rows, scores, pixels = zip(*(ROWS[i] for i in order), strict=True)
    table = pa.table(
        {
            "shard": pa.array(shards).dictionary_encode(),
            "row": pa.array(rows, pa.int64()),
            "clip_score": pa.array(scores, pa.float32(), from_pandas=False),
            "pixels": pa.array(pixels, pa.int64()),
        }
    )
    kept = keepers(table, np.array(groups), keep)
    assert sorted(order[i] for i in np.flatnonzero(kept)) == expected


def test_no_rows_have_no_keeper():
    columns = {"shard": pa.string(), "row": pa.int64(), "clip_score": pa.float32(), "pixels": pa.int64()}
    empty = pa.table({name: pa.array([], type_) for name, type_ in columns.items()})
    assert keepers(empty, np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_a_search_through_the_graph(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 300, (2, 200)) * 7
    neighbours = {}
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    expected, seen = {}, set()
    for node in sorted(neighbours):
        waiting = [node]
        while waiting:
            if (here := waiting.pop()) not in seen:
                seen.add(here)
                expected[here] = node
                waiting += neighbours[here]
    assert dict(zip(*(x.tolist() for x in components(a, b)), strict=True)) == expected


def test_a_long_chain_in_any_order_is_one_component():
    order = np.random.default_rng(0).permutation(100_000)
    nodes, smallest = components(order, order + 1)
    assert len(nodes) == 100_001 and not smallest.any()


def test_sets_can_grow_and_shrink():
    sets = DisjointSets(3)
    sets.join(np.array([0]), np.array([2]))
    more = sets.grown(5)
    more.join(np.array([4, 2]), np.array([1, 4]))
    assert more.roots().tolist() == [0, 0, 0, 3, 0]
    assert more.shrunk(3).roots().tolist() == [0, 0, 0] and sets.roots().tolist() == [0, 1, 0]
