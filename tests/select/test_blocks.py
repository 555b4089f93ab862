"""Rows are given to blocks so that near duplicates share one."""

import subprocess
import sys

import numpy as np
import pytest

from clip_transforms.select import blocks
from clip_transforms.select.blocks import Blocks, give_blocks, how_many_blocks, make_blocks, near_copies, one_block
from clip_transforms.select.cosines import dots, unit

faiss = pytest.importorskip("faiss")


def clustered(n, d=32, clusters=60, seed=0):
    """Other rows of the same clusters for another seed."""
    centres, rng = np.random.default_rng(d).normal(size=(clusters, d)), np.random.default_rng(seed)
    return unit(centres[rng.integers(0, clusters, n)] + 0.4 * rng.normal(size=(n, d)))


def found_pairs(rows, copies, made):
    """Which copies share a block with their row, one of both at home there."""
    blocks_of = [({}, {}), ({}, {})]
    for (homes, all_), vectors in zip(blocks_of, (rows, copies), strict=True):
        for row, block, _, home in zip(*(x.tolist() for x in give_blocks(vectors, made)), strict=True):
            all_.setdefault(row, set()).add(block)
            if home:
                homes[row] = block
    (home, every), (home_of_copy, every_of_copy) = blocks_of
    return np.array([home[i] in every_of_copy[i] or home_of_copy[i] in every[i] for i in range(len(rows))])


def test_the_number_of_blocks_is_two_thirds_of_the_root_and_one_for_a_small_dataset():
    assert [how_many_blocks(n) for n in (0, 1, 16_384, 16_385, 1_000_000)] == [1, 1, 1, 85, 667]


@pytest.mark.parametrize("recall", [0.9, 0.99, 1.0])
def test_the_margin_finds_the_share_of_copies_that_is_asked_for(recall):
    sample = clustered(6000)
    made = make_blocks(sample, 64, 0.95, recall, 0)
    fresh = clustered(4000, seed=1)
    found = found_pairs(fresh, near_copies(fresh, 0.95, 7), made).mean()
    assert found >= recall - 0.01 and made.recall >= recall
    assert one_block(sample).recall == 1


def test_without_a_margin_fewer_are_found():
    made, rows = make_blocks(clustered(6000), 64, 0.95, 1.0, 0), clustered(4000, seed=1)
    copies = near_copies(rows, 0.95, 7)
    assert found_pairs(rows, copies, Blocks(made.centroids)).mean() < found_pairs(rows, copies, made).mean()


def test_copies_have_the_cosine_that_is_asked_for():
    rows = clustered(500)
    assert dots(rows, near_copies(rows, 0.95, 3)) == pytest.approx(0.95, abs=1e-5)


def test_every_row_has_one_home_the_nearest_block_and_guests_lie_within_the_margin():
    rows, made = clustered(3000), Blocks(clustered(50, seed=3), margin=0.05)
    row, block, score, home = give_blocks(rows, made)
    all_scores = dots(rows[:, None], made.centroids[None])
    expected = all_scores >= all_scores.max(axis=1, keepdims=True) - 0.05
    assert np.array_equal(np.stack(np.nonzero(expected)), np.stack([row, block]))
    assert row[home].tolist() == list(range(3000)) and block[home].tolist() == all_scores.argmax(axis=1).tolist()
    assert score[home].tolist() == all_scores.max(axis=1).tolist()
    assert score == pytest.approx(all_scores[row, block], abs=1e-6)


def test_a_row_between_two_centroids_is_at_home_in_the_first():
    row, block, _, home = give_blocks(np.array([[1, 0]], np.float32), Blocks(np.array([[0, 1], [1, 0], [1, 0]], "f4")))
    assert (row.tolist(), block.tolist(), home.tolist()) == ([0, 0], [1, 2], [True, False])


def test_no_rows_have_no_blocks():
    assert [len(x) for x in give_blocks(np.empty((0, 4), np.float32), one_block(np.empty((0, 4), np.float32)))] == [
        0
    ] * 4


def test_a_block_far_larger_than_the_others_is_split():
    rng = np.random.default_rng(0)
    around, apart = rng.normal(size=(5000, 32)) + 10 * np.eye(32)[0], rng.normal(size=(1000, 32))
    sample, few = unit(np.concatenate([around, apart])), unit(np.concatenate([np.eye(32)[:1], apart[:19]]))
    with blocks.one_thread() as used:
        split = blocks._split(used, sample, few, 0)
    before, after = (np.bincount(give_blocks(sample, Blocks(c))[1]) for c in (few, split))
    assert len(few) < len(split) < 2 * len(few) and before.max() >= 5000 and after.max() < 2000


def test_a_crowd_of_copies_is_one_block():
    crowd = unit(clustered(1)[0] + 0.02 * np.random.default_rng(0).normal(size=(6000, 32)))
    sample = np.random.default_rng(1).permutation(np.concatenate([crowd, clustered(6000)]))
    made = make_blocks(sample, 100, 0.95, 0.999, 0)
    assert len(np.unique(give_blocks(crowd, made)[1][give_blocks(crowd, made)[3]])) == 1
    assert len(give_blocks(crowd, made)[0]) < 3 * len(crowd)


def test_a_recall_that_would_take_too_many_blocks_a_row_is_not_reached_and_said_so():
    sample = unit(np.random.default_rng(0).normal(size=(9000, 64)))
    made = make_blocks(sample, 300, 0.7, 0.9999, 0)
    row = give_blocks(unit(np.random.default_rng(1).normal(size=(2000, 64))), made)[0]
    assert made.recall < 0.9999 and len(row) < 10 * 2000


THREADS = """
import sys
import faiss, numpy as np
from clip_transforms.select.blocks import make_blocks, give_blocks
from clip_transforms.select.cosines import unit
faiss.omp_set_num_threads(int(sys.argv[1]))
rows = unit(np.random.default_rng(0).normal(size=(9000, 128)))
made = make_blocks(rows[:6000], 64, 0.95, 0.99, 0)
row, block, score, home = give_blocks(rows[6000:], made)
given = row, block, score[home], home
import hashlib
print(hashlib.sha256(made.centroids.tobytes() + b"".join(x.tobytes() for x in given)).hexdigest(), made.margin)
assert faiss.omp_get_max_threads() == int(sys.argv[1])
"""


def test_blocks_do_not_depend_on_the_number_of_threads():
    made = set()
    for threads in ("1", "2", "3"):
        environment = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        argv = [sys.executable, "-c", THREADS, threads]
        made.add(subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(made) == 1


def test_without_faiss_a_large_dataset_is_refused_and_a_small_one_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    blocks.check_faiss(16_384)
    with pytest.raises(ValueError, match=r"16,385 rows need faiss.*pip install 'clip-transforms\[search\]'"):
        blocks.check_faiss(16_385)
