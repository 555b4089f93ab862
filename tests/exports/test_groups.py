"""Parts are grouped by their counts alone, so that every run cuts the same files."""

import pytest

from clip_transforms.exports.groups import groups_of, padded


@pytest.mark.parametrize(
    ("counts", "rows", "per_file", "expected"),
    [
        ([], 8, 2, []),
        ([("a", 0), ("b", 0)], 8, 2, []),
        ([("a", 5)], 8, 2, [(["a"], 0, 3)]),
        ([("a", 5), ("b", 0), ("c", 2), ("d", 1)], 8, 2, [(["a", "c", "d"], 0, 4)]),
        ([("a", 9), ("b", 8), ("c", 1)], 8, 2, [(["a"], 0, 5), (["b"], 5, 4), (["c"], 9, 1)]),
        ([("a", 3), ("b", 3), ("c", 3)], 4, 100, [(["a", "b"], 0, 1), (["c"], 1, 1)]),
    ],
)
def test_groups_are_consecutive_parts_with_rows(counts, rows, per_file, expected):
    groups = groups_of(counts, rows, per_file)
    assert [([part for part, _ in g.parts], g.first, g.files) for g in groups] == expected
    assert sum(group.rows for group in groups) == sum(count for _, count in counts)


def test_a_small_file_comes_at_most_once_a_group():
    groups = groups_of([(str(i), 3_333) for i in range(1_000)], 40_000, 10_000)
    assert all(group.rows >= 40_000 for group in groups[:-1])
    assert sum(group.files for group in groups) <= 1.2 * 333.3 + 1


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 100, 101, 1_000])
def test_padded_numbers_sort_as_numbers_do(count):
    names = [padded(number, count) for number in range(count)]
    assert names == sorted(names) and len({len(name) for name in names}) <= 1
    assert padded(7, 9) == "7" and padded(7, 11) == "07" and padded(7, 3, 5) == "00007"
