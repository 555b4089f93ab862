"""Rows on their way to their blocks: records in files of buckets, a bucket for each block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clip_transforms.select.bucket_file import read_bytes, read_ends, split_sorted
from clip_transforms.select.near import Rows

PIECE_ROWS = 32_768  # rows that a task holds, and once more while it compares a piece: 64 MB each at d = 512
_COPIED = 256  # rows at once, so that what is copied on the way stays in the cache


def record_dtype(vectors: np.dtype) -> np.dtype:
    """Return the dtype of a record: id, cosine with the centroid, whether it is at home, and its vectors.

    Args:
        vectors: dtype of a row's vectors with their shape, such as `np.dtype(("<f4", (1, 512)))`.
    """
    return np.dtype([("id", "<i8"), ("score", "<f8"), ("home", "<i4"), ("values", vectors)])


def as_buckets(
    ids: np.ndarray,
    values: np.ndarray,
    given: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    count: int,
    dtype: np.dtype,
) -> list[np.ndarray]:
    """Sort rows by their blocks, and cut them into buckets.

    Args:
        ids: int64 [n].
        values: float16 or float32 [n, m, d].
        given: as `give_blocks` returns it: row, block, score and home, [e] each.
        count: number of blocks.
        dtype: of the records.
    Returns:
        `count` arrays of records, in the order of the rows.
    """
    order = np.argsort(given[1], kind="stable")
    row, block, score, home = (column[order] for column in given)
    records = np.empty(len(row), dtype)
    records["id"], records["score"], records["home"] = ids[row], score, home
    for first in range(0, len(row), _COPIED):
        records["values"][first : first + _COPIED] = values[row[first : first + _COPIED]]
    return split_sorted(records, block, count)


def tasks(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut blocks into tasks of about PIECE_ROWS rows.

    Args:
        sizes: number of records of each block.
    Returns:
        (first block, block after the last, piece): some whole blocks and piece 0, or one piece of a large block.
    """
    found, first, rows = [], 0, 0
    for block, size in enumerate(sizes):
        if rows + size > PIECE_ROWS and first < block:
            found.append((first, block, 0))
            first, rows = block, 0
        if size > PIECE_ROWS:
            found += [(block, block + 1, piece) for piece in range(-(-size // PIECE_ROWS))]
            first = block + 1
        else:
            rows += size
    return [*found, (first, len(sizes), 0)] if rows else found


def read_blocks(uris: Sequence[str], first: int, stop: int, piece: int, dtype: np.dtype) -> Iterator[Iterator[Rows]]:
    """Read the blocks of a task.

    Args:
        uris: files of buckets.
        first: first block.
        stop: block after the last.
        piece: piece of the block with which the comparison begins; later ones follow.
        dtype: of the records.
    Yields:
        For each block its pieces, of which one at a time is held.
    """
    ends = np.stack([read_ends(uri, first, stop) for uri in uris])
    if stop - first == 1:
        yield _read_pieces(uris, ends, piece, dtype)
        return
    data = [read_bytes(uri, places[0], places[-1]) for uri, places in zip(uris, ends, strict=True)]
    places = ends - ends[:, :1]
    for block in range(stop - first):
        yield iter([_rows([d[p[block] : p[block + 1]] for d, p in zip(data, places, strict=True)], dtype)])


def _read_pieces(uris: Sequence[str], ends: np.ndarray, piece: int, dtype: np.dtype) -> Iterator[Rows]:
    """Read the pieces of one block; `ends` is where it begins and ends in each file."""
    after = np.cumsum(ends[:, 1] - ends[:, 0])
    before = after - (ends[:, 1] - ends[:, 0])
    step = PIECE_ROWS * dtype.itemsize
    for start in range(piece * step, int(after[-1]), step):
        cuts = np.clip([start - before, start + step - before], 0, after - before) + ends[:, 0]
        yield _rows([read_bytes(uri, *map(int, cut)) for uri, cut in zip(uris, cuts.T, strict=True)], dtype)


def _rows(data: Sequence[bytes], dtype: np.dtype) -> Rows:
    return Rows.of([np.frombuffer(some, dtype) for some in data])
