"""Exact cut-offs by counting, against sorting; DataComp's rule row for row."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.datasets import write_rows
from clip_transforms import filter_embeddings
from clip_transforms.select.cut import Search, histogram, ordered, value_of

ODD = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 0.29, np.float32(0.29), -1.0, 1.0, 3e38, -3e38, float("inf"), float("-inf")]


def arrays(dtype, nan=False):
    width = 8 * np.dtype(dtype).itemsize
    values = st.one_of(
        st.sampled_from([*ODD, *([float("nan")] * nan)]), st.floats(width=width, allow_nan=nan), st.just(0.5)
    )
    return hnp.arrays(dtype, st.integers(1, 60), elements=values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_keys_are_ordered_as_their_values(dtype):
    @given(arrays(dtype))
    @settings(deadline=None)
    def check(values):
        keys = ordered(values)
        assert ((keys[:, None] < keys[None]) == (values[:, None] < values[None])).all()
        assert [value_of(int(key), np.dtype(dtype)) for key in keys] == values.tolist()

    check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_counting_finds_the_value_at_each_place(dtype):
    @given(arrays(dtype), st.data())
    @settings(deadline=None, max_examples=50)
    def check(values, data):
        place = data.draw(st.integers(0, len(values) - 1))
        keys, search = ordered(values), Search(place)
        for level in range(np.dtype(dtype).itemsize // 2):
            # In two parts, as from two workers.
            parts = [histogram(keys[half], search.prefix, level) for half in (slice(0, 9), slice(9, None))]
            search = search.narrowed(sum(parts))
        threshold = -np.sort(-values)[place]
        assert value_of(search.prefix, np.dtype(dtype)) == threshold
        assert search.above == (values > threshold).sum()

    check()


def datacomp(scores, fraction):
    """Ten lines of NumPy: which rows stay. Nulls count in n, and are last."""
    values = np.array([np.nan if score is None else score for score in scores], np.float32)
    n = int(len(values) * fraction)
    ranked = -np.sort(-values)
    if n >= len(ranked) or np.isnan(ranked[n]):  # DataComp fails or keeps nothing here; we keep all with a value
        return np.flatnonzero(~np.isnan(values)).tolist()
    return np.flatnonzero(values >= ranked[n]).tolist()


def kept_rows(kept):
    """(shard, row) of each kept row, sorted."""
    tables = [pq.read_table(path) for path in sorted((kept / "parts").iterdir())]
    return sorted((row["shard"], row["row"]) for table in tables for row in table.to_pylist())


def run(tmp_path, scores, cuts=(), **conditions):
    """Filter scores that are cut into parts of one shard at some places; the kept rows and the record."""
    edges = [0, *sorted(cuts), len(scores)]
    pieces = [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    parts = [{"shard": "/s.tar", "clip_score": scores[a:b], "row": np.arange(a, b)} for a, b in pieces]
    write_rows(tmp_path / "out", parts)
    record = filter_embeddings(tmp_path / "out", tmp_path / "kept", **conditions)
    return [row for _, row in kept_rows(tmp_path / "kept")], record


# From a run of DataComp's own code; the threshold and the rows that it keeps.
SCORES = [0.31, 0.25, 0.3, None, 0.3, 0.1, 0.28, 0.3, 0.05, 0.22]


@pytest.mark.parametrize(
    "fraction, threshold, kept",
    [(0.2, 0.3, [0, 2, 4, 7]), (0.3, 0.3, [0, 2, 4, 7]), (0.5, 0.25, [0, 1, 2, 4, 6, 7])],
    ids=str,
)
def test_a_top_fraction_keeps_datacomps_rows(tmp_path, fraction, threshold, kept):
    rows, record = run(tmp_path, SCORES, [4, 7], top_fraction=fraction)
    assert rows == kept
    assert record["cut"]["threshold"] == float(np.float32(threshold))
    assert record["cut"] == {
        "n": 10,
        "values": 9,
        "threshold": float(np.float32(threshold)),
        "above": sum(score is not None and np.float32(score) > np.float32(threshold) for score in SCORES),
        "ties": SCORES.count(threshold),
    }
    assert record["counts"] == {
        "seen": 10,
        "kept": len(kept),
        "dropped": {"top": 9 - len(kept)},
        "null": 1,
    }


@pytest.mark.parametrize("fraction", [0.9, 1.0])
def test_where_the_place_falls_among_the_nulls_every_row_with_a_value_stays(tmp_path, fraction):
    rows, record = run(tmp_path, SCORES, [4], top_fraction=fraction)
    assert rows == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert record["cut"] == {"n": 10, "values": 9, "threshold": None, "above": 9, "ties": 0}


@pytest.mark.parametrize("n, fraction, place", [(100, 0.29, 28), (1000, 0.29, 290), (100, 0.57, 56), (10, 0.3, 3)])
def test_the_place_is_computed_as_a_float(tmp_path, n, fraction, place):
    rows, _ = run(tmp_path, [-i for i in range(n)], top_fraction=fraction)
    assert rows == list(range(place + 1))


def test_top_fractions_agree_with_numpy(tmp_path_factory):
    scores = st.lists(
        st.one_of(st.none(), st.sampled_from([*ODD[:10], float("nan"), 0.5]), st.floats(width=32)), max_size=40
    )

    @given(scores, st.floats(0, 1), st.lists(st.integers(0, 40), max_size=3))
    @settings(deadline=None, max_examples=60)
    def check(scores, fraction, cuts):
        rows, record = run(
            tmp_path_factory.mktemp("s"), scores, {c for c in cuts if c < len(scores)}, top_fraction=fraction
        )
        assert rows == datacomp(scores, fraction)
        assert record["cut"]["n"] == len(scores)

    check()


def test_top_counts_are_exact_and_the_first_of_equal_rows_stay(tmp_path_factory):
    scores = st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, -0.0, 0.0, float("nan")])), max_size=30)

    @given(scores, st.integers(1, 35), st.lists(st.integers(0, 30), max_size=3))
    @settings(deadline=None, max_examples=60)
    def check(scores, count, cuts):
        cuts = {cut for cut in cuts if cut < len(scores)}
        rows, record = run(tmp_path_factory.mktemp("s"), scores, cuts, top_count=count)
        valid = [(-score, row) for row, score in enumerate(scores) if score is not None and score == score]
        assert rows == sorted(row for _, row in sorted(valid)[:count])
        assert record["counts"]["kept"] == min(count, len(valid))

    check()


def test_ties_are_broken_by_shard_and_row_whatever_the_names_of_the_parts(tmp_path):
    parts = [{"shard": shard, "clip_score": [0.5] * 3} for shard in ("/c.tar", "/a.tar", "/b.tar")]
    write_rows(tmp_path / "out", parts)
    filter_embeddings(tmp_path / "out", tmp_path / "kept", top_count=5)
    assert kept_rows(tmp_path / "kept") == [("/a.tar", 0), ("/a.tar", 1), ("/a.tar", 2), ("/b.tar", 0), ("/b.tar", 1)]


WHOLE = [0, 1, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64], ids=str)
def test_whole_numbers_are_ordered_by_their_keys(dtype):
    values = np.array([value for value in WHOLE if dtype is np.int64 or value >= 0] + [2**62], dtype)
    keys = ordered(values)
    assert ((keys[:, None] < keys[None]) == (values[:, None] < values[None])).all()
    assert [value_of(int(key), np.dtype(dtype)) for key in keys] == values.tolist()


@pytest.mark.parametrize("by", ["id", "id::bigint", "(id + 9e18::bigint)::ubigint"])
def test_whole_numbers_are_ranked_exactly(tmp_path, by):
    """As float64 2^53 and 2^53 + 1 are equal, and the first of them stayed."""
    parts = [{"clip_score": [0] * 2, "id": [2**53, None]}, {"clip_score": [0] * 2, "id": [2**53 + 1, -(2**62)]}]
    write_rows(tmp_path / "out", parts, columns=["id:int64"])
    record = filter_embeddings(tmp_path / "out", tmp_path / "kept", by=by, top_count=1)
    assert kept_rows(tmp_path / "kept") == [("/shards/1.tar", 0)]
    threshold = 2**53 + 1 + (0 if by.startswith("id") else 9 * 10**18)
    assert record["cut"] == {"n": 4, "values": 3, "threshold": threshold, "above": 0, "ties": 1}
    table = pq.read_table(tmp_path / "kept" / "parts" / "part-00001.parquet")
    assert table["by"].to_pylist() == [threshold]
    record = filter_embeddings(tmp_path / "out", tmp_path / "half", by=by, top_fraction=0.5)
    assert kept_rows(tmp_path / "half") == [("/shards/0.tar", 0), *[("/shards/1.tar", n) for n in (0, 1)]]
