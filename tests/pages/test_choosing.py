"""The rows that are shown: the best over all parts, whatever the order of the parts."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from clip_transforms.pages.choosing import (
    BEST,
    LEAST_SURE,
    MOST_CLASSES,
    SUREST,
    WORST,
    apart,
    best_of,
    choose_groups,
    choose_rows,
    pictured,
    shown_classes,
)


def part(shard, scores, labels=None):
    n = len(scores)
    return pa.table(
        {
            "shard": [shard] * n,
            "row": pa.array(range(n), pa.int64()),
            "clip_score": pa.array(scores, pa.float32()),
            "animals.label": pa.array(labels or ["cat"] * n),
            "animals.probability": pa.array(scores, pa.float32()),
        }
    )


def test_the_choice_over_all_parts_is_that_over_all_rows():
    rng = np.random.default_rng(0)
    parts = [part(name, rng.integers(0, 30, 40) / 64, rng.choice(["cat", "dog"], 40).tolist()) for name in "abc"]
    chosen = [choose_rows(table, {"animals": ["cat", "dog"]}) for table in parts]
    found = [best_of(order) for order in itertools.permutations(chosen)]
    assert all(one == found[0] for one in found) and best_of([best_of(chosen[:2]), chosen[2]]) == found[0]
    rows = [row for table in parts for row in table.to_pylist()]
    best = sorted(rows, key=lambda row: (-row["clip_score"], row["shard"], row["row"]))[:12]
    assert [(row.shard, row.row) for row in found[0][BEST,]] == [(row["shard"], row["row"]) for row in best]
    dogs = [row for row in rows if row["animals.label"] == "dog"]
    least = sorted(dogs, key=lambda row: (row["animals.probability"], row["shard"], row["row"]))[:5]
    chosen_dogs = found[0][LEAST_SURE, "animals", "dog"]
    assert [(row.shard, row.row) for row in chosen_dogs] == [(row["shard"], row["row"]) for row in least]


def test_rows_without_a_score_or_a_label_are_never_chosen():
    table = part("a", [0.5, None, float("nan"), 0.25], ["cat", "cat", "cat", None])
    chosen = choose_rows(table, {"animals": ["cat", "dog"]})
    assert [row.row for row in chosen[BEST,]] == [0, 3] and [row.row for row in chosen[WORST,]] == [3, 0]
    assert [row.row for row in chosen[SUREST, "animals", "cat"]] == [0]
    assert (SUREST, "animals", "dog") not in chosen
    assert pictured(chosen) == {"a": [0, 3]}


@pytest.mark.parametrize(
    "number, first, last", [(0, 0, 0), (1, 1, 0), (2, 1, 1), (5, 3, 2), (7, 4, 3), (9, 5, 4), (10, 5, 5), (40, 5, 5)]
)
def test_no_row_is_at_both_ends(number, first, last):
    table = part("a", (np.arange(number) / 64).tolist(), ["cat"] * number)
    chosen = choose_rows(table, {"animals": ["cat"]})
    ends = [chosen.get((kind, "animals", "cat"), ()) for kind in (SUREST, LEAST_SURE)]
    surest, least = ([row.row for row in end] for end in apart(*ends))
    assert surest == list(range(number))[::-1][:first] and least == list(range(number))[:last]


def test_rows_of_equal_rank_are_shared_out_too():
    table = part("a", [0.5] * 7, ["cat"] * 7)
    chosen = choose_rows(table, {"animals": ["cat"]})
    best, worst = apart(chosen[BEST,], chosen[WORST,])
    assert ([row.row for row in best], [row.row for row in worst]) == ([0, 1, 2, 3], [4, 5, 6])


def test_many_taxonomies_share_the_pictures():
    for taxonomies, each in ((1, 24), (2, 12), (5, 4), (20, 1), (50, 1)):
        shown = shown_classes({f"t{i}": [str(j) for j in range(40)] for i in range(taxonomies)})
        assert [len(classes) for classes in shown.values()] == [each] * min(taxonomies, MOST_CLASSES)
        assert sum(map(len, shown.values())) <= MOST_CLASSES


def test_the_largest_groups_come_first_and_begin_with_the_row_that_stays():
    rows = [(0, "a", 1, True, 1.0), (0, "a", 0, False, 0.9)]
    rows += [(3, "a", 9, False, 0.8), (3, "b", 2, True, 1.0), (3, "b", 5, False, 0.95)]
    table = pa.table(list(zip(*rows, strict=True)), ["group", "shard", "row", "kept", "similarity"])
    (first, second) = choose_groups(table)["duplicates",]
    assert first.more == (3, (("b", 2, True, 1.0), ("b", 5, False, 0.95), ("a", 9, False, 0.8)))
    assert (second.shard, second.row, second.more[0]) == ("a", 1, 2)
    assert choose_groups(table.slice(0, 0)) == {}
