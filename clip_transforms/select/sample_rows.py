"""Rows of a dataset by the names that people give them: a key, or a shard and a row."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.reader import read_table
from clip_transforms.parts.vectors import read_vectors
from clip_transforms.select.query_file import QueryError


def find_samples(dataset: Dataset, names: Sequence[str]) -> list[tuple[str, int]]:
    """Find the rows that are meant by names: keys, or `SHARD#ROW` where a key is not unique.

    Args:
        dataset: the dataset, of whose keys one part at a time is held.
        names: the names.
    Returns:
        For each name the part, and the place of the row in the part.
    Raises:
        QueryError: if there is no such row, or several.
    """
    found: dict[str, list[tuple[str, int, str]]] = {name: [] for name in names}
    keys = pa.array(sorted(found), pa.string())
    for part in dataset.parts if found else ():
        table = read_table(dataset.uri, part, ["key", "row"])
        for place in np.flatnonzero(pc.is_in(table.column("key"), value_set=keys).to_numpy()).tolist():
            row = f"{dataset.shards[part]}#{table.column('row')[place]}"
            found[table.column("key")[place].as_py()].append((part, place, row))
    return [_only(dataset, name, found[name]) for name in names]


def _only(dataset: Dataset, name: str, rows: Sequence[tuple[str, int, str]]) -> tuple[str, int]:
    if not rows:
        return _by_place(dataset, name)
    if len(rows) > 1:
        raise QueryError(
            f"--like {name} is the key of {len(rows)} samples in {dataset.uri}; name one by shard and row: --like "
            f"'{rows[0][2]}' or '{rows[1][2]}'"
        )
    return rows[0][:2]


def _by_place(dataset: Dataset, name: str) -> tuple[str, int]:
    """Find `SHARD#ROW`."""
    shard, _, number = name.rpartition("#")
    if shard and number.isdecimal():
        wanted = {shard, storage.normalise(shard)}
        for part in (part for part, own in dataset.shards.items() if own in wanted):
            places = np.flatnonzero(read_table(dataset.uri, part, ["row"]).column("row").to_numpy() == int(number))
            if len(places):
                return part, int(places[0])
    way_out = "its columns key, shard and row name the samples"
    if os.path.isfile(name):
        way_out = f"it is a file, so give --image {name}"
    raise QueryError(f"--like {name} is no key of {dataset.uri}, and no SHARD#ROW; {way_out}")


def vectors_of(dataset: Dataset, place: tuple[str, int], columns: Sequence[str]) -> np.ndarray | None:
    """Read the vectors of one row.

    Args:
        dataset: the dataset.
        place: the part, and the place of the row in the part.
        columns: embedding columns.
    Returns:
        float32 [c, d]; None if the row lacks one of them.
    """
    part, row = place
    wanted = np.zeros(dataset.rows[part], bool)
    wanted[row] = True
    (found,) = read_vectors(dataset.uri, part, dataset.digests[part], columns, wanted)
    here = found.valid[: row - found.first + 1]
    return found.values[np.count_nonzero(here) - 1].astype(np.float32) if here[-1] else None
