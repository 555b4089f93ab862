"""Blocks of rows: rows that are near each other share one, so that only rows of one block need be compared.

Every row has a home, the block whose centroid is nearest to it. Within a margin it is a guest of further blocks. A pair
is found if one of its rows is at home in a block of the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_transforms.select.cosines import dots, dots_at, slack

ONE_BLOCK_ROWS = 16_384  # up to here all pairs are compared: some seconds on one core, and 32 MB at d = 512
HELD_OUT = 8_192  # rows that set the margin; the centroids must not know them
_PER_CENTROID = 32  # rows of the sample for each centroid
_MOST_SAMPLED = 1 << 18  # 512 MB at d = 512
_ITERATIONS = 4  # with 8, the blocks of clustered rows are a sixth smaller, but k-means takes twice as long
_LARGE = 4  # a block this many times larger than the mean is split
_MOST_BLOCKS = 8  # mean of the blocks of a row: every row is written once for each
_SEARCHED = 1_024  # rows that say how many blocks a margin takes
_DIRECTIONS = 64  # rows whose sum is a random direction
_BATCH = 1_024


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How rows are given to blocks.

    Attributes:
        centroids: float32 [k, d] of length 1.
        margin: a row goes to every block whose centroid's cosine is at most this much below the nearest one's.
        recall: expected share of the pairs at the threshold that are found.
    """

    centroids: np.ndarray
    margin: float = 0.0
    recall: float = 1.0


def how_many_blocks(rows: int) -> int:
    """Return the number of blocks for a number of rows: two thirds of its root, or one for a small dataset."""
    return 1 if rows <= ONE_BLOCK_ROWS else round(math.sqrt(rows) * 2 / 3)


def how_many_sampled(rows: int) -> int:
    """Return the number of rows that `make_blocks` wants to see; at most 2^18, whatever the dataset."""
    return min(rows, _MOST_SAMPLED, HELD_OUT + _PER_CENTROID * how_many_blocks(rows))


def check_faiss(rows: int) -> None:
    """Refuse to begin without faiss, unless all rows are one block.

    Raises:
        ValueError: saying how to install it.
    """
    try:
        if how_many_blocks(rows) > 1:
            import faiss  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"near duplicates among {rows:,} rows need faiss, which is not installed (up to {ONE_BLOCK_ROWS:,} rows do "
            "not); run: pip install 'clip-transforms[search]'"
        ) from error


def one_block(sample: np.ndarray) -> Blocks:
    """Return a single block, whose centroid is the mean of the sample, float32 [s, d]."""
    mean = sample.sum(axis=0, dtype=np.float64) if len(sample) else np.zeros(sample.shape[1])
    return Blocks((mean / (np.linalg.norm(mean) or 1.0)).astype(np.float32)[None])


def make_blocks(sample: np.ndarray, k: int, threshold: float, recall: float | None, seed: int) -> Blocks:
    """Find centroids by k-means, and the margin with which pairs at the threshold are found.

    One thread does all of it, so that the result does not depend on the machine's cores.

    Args:
        sample: float32 [s, d], vectors of length 1 in random order; the last HELD_OUT set the margin.
        k: number of blocks, at least 2; large blocks are split, and blocks of near copies are merged.
        threshold: smallest cosine of near duplicates.
        recall: share of the pairs at the threshold that shall be found, 0 to 1; None for no margin.
        seed: seed of k-means, and of the copies that set the margin.
    """
    held = min(HELD_OUT, len(sample) // 2)
    seen, unseen = sample[: len(sample) - held], sample[len(sample) - held :]
    with one_thread() as faiss:
        centroids = _merged(faiss, _split(faiss, seen, _k_means(faiss, seen, k, seed), seed), threshold)
    margin, expected = _margin(centroids, unseen, threshold, recall, seed)
    return Blocks(centroids, margin, expected)


@contextlib.contextmanager
def one_thread() -> Iterator[Any]:
    """Let faiss use one thread while the block runs, and yield it: sums of several differ in their last bits."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def _k_means(faiss: Any, rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    few: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}  # all rows, no warning
    kmeans = faiss.Kmeans(rows.shape[1], min(k, len(rows)), niter=_ITERATIONS, seed=seed, spherical=True, **few)
    kmeans.train(rows)
    return kmeans.centroids


def _split(faiss: Any, rows: np.ndarray, centroids: np.ndarray, seed: int) -> np.ndarray:
    """Replace the centroid of each block that is far larger than the others by several."""
    homes = _homes(centroids, rows)
    counts = np.bincount(homes, minlength=len(centroids))
    mean = len(rows) / len(centroids)
    large = np.flatnonzero(counts > _LARGE * mean)
    pieces = [_k_means(faiss, rows[homes == block], math.ceil(counts[block] / mean), seed) for block in large]
    return np.concatenate([np.delete(centroids, large, axis=0), *pieces])


def _merged(faiss: Any, centroids: np.ndarray, threshold: float) -> np.ndarray:
    """Remove centroids that are near duplicates of an earlier one.

    k-means gives a crowd of copies many centroids. Each copy would then be a guest of all these blocks.
    """
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    ends, _, others = index.range_search(centroids, threshold)
    kept = np.ones(len(centroids), bool)
    for place in range(len(centroids)):
        near = others[ends[place] : ends[place + 1]]
        kept[place] = not kept[near[near < place]].any()
    return centroids[kept]


def _homes(centroids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the block in which each row is at home, int64 [n]."""
    _, block, _, home = give_blocks(rows, Blocks(centroids))
    return block[home]


def _margin(
    centroids: np.ndarray, rows: np.ndarray, threshold: float, recall: float | None, seed: int
) -> tuple[float, float]:
    """Return the margin that finds the wanted share of copies at the threshold, and the share that it finds.

    Where that would take too many blocks a row, the margin is smaller.
    """
    copies, every = near_copies(rows, threshold, seed), np.arange(len(rows))
    home, homes_of_copies = _homes(centroids, rows), _homes(centroids, copies)
    apart = [
        dots_at(vectors, every, centroids, own) - dots_at(vectors, every, centroids, other)
        for vectors, own, other in ((rows, home, homes_of_copies), (copies, homes_of_copies, home))
    ]
    needed = np.sort(np.minimum(*apart))
    wanted = 0.0 if recall is None else needed[max(0, math.ceil(recall * len(rows)) - 1)]
    margin = max(0.0, float(min(wanted, _most(centroids, rows[:_SEARCHED], float(wanted)))))
    return margin, float((needed <= margin).mean())


def _most(centroids: np.ndarray, rows: np.ndarray, wanted: float) -> float:
    """Return `wanted`, or the smaller margin with which these rows have _MOST_BLOCKS blocks each in the mean."""
    row, block, _, home = give_blocks(rows, Blocks(centroids, max(0.0, wanted)))
    if len(row) <= _MOST_BLOCKS * len(rows):
        return wanted
    scores = dots_at(rows, row, centroids, block)  # of guests, `give_blocks` does not have them exactly
    return float(np.sort(scores[home][row] - scores)[_MOST_BLOCKS * len(rows)])


def near_copies(rows: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """Return a copy of each row at a cosine to it, in a random direction with the covariance of the rows.

    Args:
        rows: float32 [n, d], of length 1.
        cosine: cosine of each copy with its row.
        seed: seed of the directions.
    Returns:
        float32 [n, d], of length 1.
    """
    rng = np.random.default_rng(seed)
    centred = rows - rows.mean(axis=0)
    away = np.zeros_like(rows)
    drawn = [(rng.standard_normal((len(rows), 1), np.float32), rng.permutation(len(rows))) for _ in range(_DIRECTIONS)]
    for first in range(0, len(rows), _BATCH):  # no matrix product, whose bits could depend on threads
        some = slice(first, first + _BATCH)
        for factor, place in drawn:
            away[some] += factor[some] * centred[place[some]]
    away -= dots(away, rows)[:, None].astype(np.float32) * rows
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.float32(cosine) * rows + np.float32(math.sqrt(1 - cosine**2)) * away


def give_blocks(rows: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give rows to their blocks.

    Args:
        rows: float32 [n, d], of length 1.
        blocks: the blocks.
    Returns:
        Four arrays [e], e ≥ n, sorted by row: the row, its block, its cosine with that block's centroid as float64, and
        whether the row is at home there. Every row has one home: of equal cosines the first block. Neither these nor
        the cosines at home depend on threads or batches; those of guests may, in their last bits.
    """
    found = [_give(rows[first : first + _BATCH], first, blocks) for first in range(0, len(rows), _BATCH)]
    empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, bool)
    row, block, score, home = (np.concatenate(columns) for columns in zip(empty, *found, strict=True))
    return row, block, score, home


def _give(rows: np.ndarray, first: int, blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    guess, error = rows @ blocks.centroids.T, 2 * slack(rows.shape[1])
    best = guess.max(axis=1)
    # Several times faster than `nonzero` in two dimensions.
    row, block = np.divmod(np.flatnonzero(guess >= (best - (blocks.margin + error))[:, None]), guess.shape[1])
    score = guess[row, block].astype(np.float64)
    below = best[row] - score
    close = np.flatnonzero((below <= error) | (below >= blocks.margin - error))  # the product cannot decide these
    score[close] = dots_at(rows, row[close], blocks.centroids, block[close])
    best = np.full(len(rows), -np.inf)
    np.maximum.at(best, row[close], score[close])  # the nearest are close
    ties = close[score[close] == best[row[close]]]
    home = np.zeros(len(row), bool)
    home[ties[np.diff(row[ties], prepend=-1) > 0]] = True
    stays = np.ones(len(row), bool)
    stays[close] = score[close] >= best[row[close]] - blocks.margin
    return first + row[stays], block[stays], score[stays], home[stays]
