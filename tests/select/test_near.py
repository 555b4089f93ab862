"""Near duplicates within a block: all pairs, exactly, and SemDeDup's rule."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_transforms.select import near
from clip_transforms.select.cosines import cosines
from clip_transforms.select.disjoint_sets import components
from clip_transforms.select.near import Rows, compare


def rows_of(values, scores=None, ids=None, home=None):
    values = np.asarray(values, np.float32)
    values = values[:, None] if values.ndim == 2 else values
    n = len(values)
    return Rows(
        np.arange(n) if ids is None else np.asarray(ids),
        values,
        np.zeros(n) if scores is None else np.asarray(scores, float),
        np.ones(n, bool) if home is None else np.asarray(home),
    )


def at_angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def crowded(rng, n, d=16, share=3):
    """Vectors with near copies at many cosines around 0.95."""
    rows = rng.normal(size=(n, d))
    copies = n // share
    noise = rng.normal(size=(copies, d)) * rng.uniform(0, 0.5, size=(copies, 1))
    rows[:copies] = rows[n - copies :] + noise
    return rows


def groups_of(edges):
    nodes, smallest = components(edges[:, 0], edges[:, 1])
    return dict(zip(nodes.tolist(), smallest.tolist(), strict=True))


def brute_force(values, threshold):
    """The same in float64, without blocks: node → smallest node of its component, if it has a near duplicate."""
    wide = values.reshape(len(values), -1).astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return components_of((unit @ unit.T).astype(np.float32) >= np.float32(threshold))


def components_of(near_ones):
    """bool [n, n] → node → smallest node of its component, if it has a near duplicate."""
    smallest = list(range(len(near_ones)))
    changed = True
    while changed:
        new = [min(smallest[j] for j in np.flatnonzero(near_ones[i])) for i in range(len(near_ones))]
        changed, smallest = new != smallest, new
    return {i: s for i, s in enumerate(smallest) if near_ones[i].sum() > 1}


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1300])
def test_all_pairs_of_a_block_are_found_and_no_others(n):
    rows = rows_of(crowded(np.random.default_rng(n), n))
    assert groups_of(compare([rows], 0.95, "components").edges) == brute_force(rows.values, 0.95)


@pytest.mark.parametrize("alike", [0, 3], ids=["far apart", "all alike"])
@pytest.mark.parametrize("vectors", [1, 2])
def test_short_vectors_lose_no_pair_and_whole_ones_are_multiplied_where_they_propose_too_many(
    alike, vectors, monkeypatch
):
    rng = np.random.default_rng(3)
    common = alike * np.concatenate([np.zeros(64), rng.normal(size=32)])  # beyond the short vectors
    values = np.stack([crowded(rng, 1300, 96, share=5) + common for _ in range(vectors)], axis=1)
    if vectors > 1:
        values[:260, 1] = values[-260:, 1]  # the other vector decides
    rows, whole = rows_of(values), []
    above = near._above
    monkeypatch.setattr(near, "_above", lambda one, *others: whole.append(one.shape[-1] == 96) or above(one, *others))
    groups = groups_of(compare([rows], 0.95, "components").edges)
    unit = values / np.linalg.norm(values, axis=2, keepdims=True)
    smallest = np.einsum("imd,jmd->ijm", unit, unit).min(axis=2).astype(np.float32)
    assert groups == components_of(smallest >= np.float32(0.95)) and len(groups) > 100
    assert any(whole) == bool(alike)


def test_no_tile_mixes_rows_at_home_with_guests_or_goes_over_the_first_piece():
    home = np.repeat([True, False, True, False], [700, 100, 30, 1200])
    tiles = near._tiles(home, 800)
    assert [place for tile in tiles for place in range(tile.start, tile.stop)] == list(range(2030))
    assert max(tile.stop - tile.start for tile in tiles) <= 512 and 800 in [tile.start for tile in tiles]
    assert all(len(set(home[tile].tolist())) == 1 for tile in tiles) and len(tiles) == 2 + 1 + 1 + 3


def test_records_of_several_files_are_put_together_in_order():
    rng = np.random.default_rng(0)
    records = np.zeros(50, [("id", "<i8"), ("score", "<f8"), ("home", "<i4"), ("values", "<f2", (1, 3))])
    records["id"], records["score"], records["home"] = rng.permutation(50), rng.integers(0, 4, 50), rng.random(50) < 0.5
    records["values"] = records["id"][:, None, None]
    rows = Rows.of([records[:20], records[20:20], records[20:]])
    names = ("home", "score", "id")
    expected = sorted(zip(*(records[name].tolist() for name in names), strict=True), key=lambda r: (-r[0], -r[1], r[2]))
    assert list(zip(rows.home.tolist(), rows.scores.tolist(), rows.ids.tolist(), strict=True)) == expected
    assert rows.values.dtype == np.float16 and rows.values[:, 0, 2].tolist() == rows.ids.tolist()
    assert rows.sorted() is rows


@pytest.mark.parametrize("size", [100, 700])
def test_a_block_in_pieces_gives_the_same_components(size):
    rows = rows_of(crowded(np.random.default_rng(0), 1300), scores=np.random.default_rng(1).normal(size=1300))
    pieces = [
        Rows(*(getattr(rows, name)[first : first + size] for name in ("ids", "values", "scores", "home")))
        for first in range(0, 1300, size)
    ]
    edges = np.concatenate([compare(pieces[i:], 0.95, "components").edges for i in range(len(pieces))])
    assert groups_of(edges) == brute_force(rows.values, 0.95)


def test_components_join_over_a_row_between():
    edges = compare([rows_of(at_angles(0, 10, 20, 50, 60))], np.cos(np.deg2rad(12)), "components").edges
    assert groups_of(edges) == {0: 0, 1: 0, 2: 0, 3: 3, 4: 3}


def test_two_guests_need_not_be_compared_but_a_guest_and_a_row_at_home_are():
    values = np.tile(at_angles(0), (1100, 1))
    values[:600] = at_angles(90)
    guests = rows_of(values, home=[True] + [False] * 1099)
    assert set(groups_of(compare([guests], 0.95, "components").edges)) >= set(range(600))
    nobody = rows_of(values, home=[False] * 1100)
    assert len(compare([nobody], 0.95, "components").edges) == 0


def test_of_several_vectors_a_row_all_must_be_near():
    both = np.stack([at_angles(0, 1, 1), at_angles(0, 1, 40)], axis=1)
    assert groups_of(compare([rows_of(both)], 0.95, "components").edges) == {0: 0, 1: 0}


def test_a_cosine_that_equals_the_threshold_is_near_and_for_semdedup_it_is_not():
    values = np.array([[1, 0], [0.6, 0.8]], np.float32)
    threshold = float(cosines(values[:, None], np.array([0]), np.array([1]))[0])
    assert threshold == np.float32(0.6)
    assert len(compare([rows_of(values)], 0.6, "components").edges) == 1
    assert len(compare([rows_of(values)], np.nextafter(np.float32(0.6), np.float32(1)), "components").edges) == 0
    assert compare([rows_of(values)], 0.6, "semdedup").dropped.tolist() == []
    assert compare([rows_of(values)], np.nextafter(np.float32(0.6), np.float32(0)), "semdedup").dropped.tolist() == [1]


def test_semdedup_keeps_what_its_own_code_keeps(metric_examples):
    example = metric_examples["semdedup"]
    values, eps = at_angles(*example["angles_deg"]), example["eps"]
    distances = np.array(example["dist_to_centroid"])
    for kept, scores in ((example["hard_kept"], 1 - distances), (example["easy_kept"], distances - 1)):
        found = compare([rows_of(values, scores)], 1 - eps, "semdedup")
        assert sorted(set(range(5)) - set(found.dropped.tolist())) == sorted(kept)
    order = [0, 2, 1, 3, 4]  # neither the components nor a greedy pass give this
    scores = np.argsort(order)
    kept = set(range(5)) - set(compare([rows_of(values, scores)], 1 - eps, "semdedup").dropped.tolist())
    assert sorted(kept) == example["order_0_2_1_3_4_kept"]
    m = dict(zip(example["hard_order"], example["hard_M"], strict=True))
    found = compare([rows_of(values, 1 - distances)], 1 - eps, "semdedup")
    assert found.cosines.tolist() == pytest.approx([m[i] for i in found.dropped.tolist()], abs=1e-6)


def test_components_keep_what_clip_retrieval_keeps(metric_examples):
    """clip-retrieval keeps the first of each component of the pairs above 0.94; ours are at least at the threshold."""
    example = metric_examples["clip_retrieval"]
    lims, neighbours = example["lims"], example["I"]
    theirs = [(i, j) for i in range(4) for j in neighbours[lims[i] : lims[i + 1]] if i < j]
    a, b = (np.array(ends) for ends in zip(*theirs, strict=True))
    expected = dict(zip(*(x.tolist() for x in components(a, b)), strict=True))
    above = np.nextafter(np.float32(0.94), np.float32(1))
    assert groups_of(compare([rows_of(example["vectors"])], above, "components").edges) == expected


def test_semdedup_in_pieces_drops_the_same_rows():
    rng = np.random.default_rng(5)
    rows = rows_of(crowded(rng, 900), scores=np.round(rng.normal(size=900), 1))  # many at the same distance
    whole = compare([rows], 0.95, "semdedup")
    pieces = [
        Rows(*(getattr(rows, name)[first : first + 250] for name in ("ids", "values", "scores", "home")))
        for first in range(0, 900, 250)
    ]
    parts = [compare(pieces[i:], 0.95, "semdedup") for i in range(4)]
    ids, found = near.largest(np.concatenate([p.dropped for p in parts]), np.concatenate([p.cosines for p in parts]))
    assert ids.tolist() == whole.dropped.tolist() and found.tolist() == whole.cosines.tolist()
    order = np.lexsort([rows.ids, rows.scores])
    unit = rows.values[order, 0] / np.linalg.norm(rows.values[order, 0], axis=1, keepdims=True)
    expected = [order[j] for j in range(1, 900) if (unit[:j] @ unit[j] > 0.95).any()]
    assert sorted(expected) == ids.tolist()


@given(st.integers(0, 2**32), st.sampled_from([np.float16, np.float32]))
@settings(max_examples=30, deadline=None)
def test_a_cosine_depends_on_nothing_but_its_pair(seed, dtype):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 2, 33)).astype(dtype)
    a, b = rng.integers(0, 40, 50), rng.integers(0, 40, 50)
    together = cosines(rows, a, b)
    assert together.tolist() == [
        cosines(rows[[i, j]], np.array([0]), np.array([1]))[0] for i, j in zip(a, b, strict=True)
    ]
    assert together.tolist() == cosines(rows, b, a).tolist()
    assert (cosines(rows, a, a) == 1).all()


@pytest.mark.slow  # 42,000 rows: ten seconds
def test_copies_of_one_vector_are_joined_without_comparing_each_with_each():
    """40,000 copies between 2,000 others: all pairs would be 820 million. The 120 s of every test are the limit."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(42_000, 32)).astype(np.float32)
    values[:40_000] = values[0] + rng.normal(size=(40_000, 32)) * 0.01
    centroid = values[0] / np.linalg.norm(values[0])
    scores = (values @ centroid) / np.linalg.norm(values, axis=1)
    shuffled = rng.permutation(42_000)
    rows = rows_of(values[shuffled], scores[shuffled], ids=shuffled)
    edges = compare([rows], 0.95, "components").edges
    assert [i for i, s in groups_of(edges).items() if s == 0] == list(range(40_000))


@pytest.fixture(scope="module")
def metric_examples():
    return json.loads((Path(__file__).parent / "duplicate_examples.json").read_text())
