"""What the steps of a search leave for each other in the run's folder."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.run.over_parts import read_items

QUERIES, VECTORS, FOUND_ROWS = "queries.npz", "vectors.npy", "found.npy"  # files in the run's folder
_FEWEST, _MOST = 16_384, 131_072  # rows of a group of parts
_GROUPS = 32
Part = Sequence[Any]  # name, digest, place among the parts, place of its shard's URI among all, sorted


def group_parts(parts: Sequence[Part], rows: Sequence[int]) -> list[list[Part]]:
    """Put consecutive parts into groups that are searched together: each group begins without knowing the best rows.

    Args:
        parts: the parts.
        rows: rows of each part.
    """
    most = min(max(sum(rows) // _GROUPS, _FEWEST), _MOST)
    groups: list[list[Part]] = [[]]
    filled = 0
    for part, count in zip(parts, rows, strict=True):
        if groups[-1] and filled + count > most:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += count
    return groups


def write_array(uri: str, array: np.ndarray, scratch: str) -> None:
    """Write an array for other workers."""
    sink = io.BytesIO()
    np.save(sink, array)
    storage.write_bytes(uri, sink.getvalue(), scratch)


@functools.lru_cache(maxsize=1)
def read_array(uri: str) -> np.ndarray:
    """Read an array that `write_array` wrote, once per process."""
    return np.load(io.BytesIO(storage.read_bytes(uri)))


def parts_of(folder: str) -> list[tuple[str, str]]:
    """Return the name and digest of each part, in the order in which found rows number them."""
    parts = (part for group in read_items(folder) for part in group)
    return [(name, digest) for _, name, digest in sorted((part[2], part[0], part[1]) for part in parts)]
