"""A dataset that is loaded: rows by their place in it, and the rows that are nearest to a query."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.browsing.plan import BrowsePlan
from clip_transforms.select.nearest import nearest
from clip_transforms.select.sample_rows import vectors_of
from clip_transforms.select.vector_index import search_index

_MOST_VALUES = 1_000  # labels of a taxonomy that a page offers


class Vectors(Protocol):
    """The vectors of a dataset, by place."""

    @property
    def there(self) -> np.ndarray:
        """Bool [n], which rows can be found."""

    def find(self, query: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest of the allowed rows, as `nearest` returns them."""

    def vector(self, place: int) -> np.ndarray:
        """Return the vector of a row that can be found, float32 [d]."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """All vectors in one matrix; comparing all of them is exact.

    Attributes:
        values: float32 [n, d]; zeros where a row has no vector.
        lengths: float32 [n]; NaN where a row has no vector that can be compared.
        names: NAME records [n].
    """

    values: np.ndarray
    lengths: np.ndarray
    names: np.ndarray

    @functools.cached_property
    def there(self) -> np.ndarray:
        """Which rows can be found."""
        return np.isfinite(self.lengths)

    @functools.cached_property
    def _longest(self) -> float:
        return float(self.lengths[self.there].max(initial=0.0))

    def find(self, query: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest rows."""
        return nearest(query, self.values, allowed, self._longest, k, self.names)

    def vector(self, place: int) -> np.ndarray:
        """Return the vector of a row."""
        return np.array(self.values[place])


@dataclasses.dataclass(frozen=True)
class Indexed:
    """An index, which looks at some of the vectors.

    Attributes:
        plan: the dataset and the index.
        index: the index of faiss.
        places: int64 [rows of the index], the place of the row that each id means.
        parts: names of the parts.
        firsts: int64 [p + 1], the place of each part's first row.
    """

    plan: BrowsePlan
    index: Any
    places: np.ndarray
    parts: Sequence[str]
    firsts: np.ndarray

    @functools.cached_property
    def there(self) -> np.ndarray:
        """Which rows can be found."""
        there = np.zeros(int(self.firsts[-1]), bool)
        there[self.places] = True
        return there

    def find(self, query: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest rows, as far as the index looks."""
        assert self.plan.index is not None
        ids_allowed = allowed[self.places]
        mask = None if ids_allowed.all() else ids_allowed
        similarities, ids = search_index(self.index, query[None], k, self.plan.index.effort, mask)
        found = ids[0] >= 0
        return self.places[ids[0][found]], similarities[0][found]

    def vector(self, place: int) -> np.ndarray:
        """Return the vector of a row."""
        part = int(np.searchsorted(self.firsts, place, side="right")) - 1
        where = (self.parts[part], place - int(self.firsts[part]))
        vectors = vectors_of(self.plan.dataset, where, self.plan.searched.columns)
        assert vectors is not None
        return vectors.ravel()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A dataset in memory; a row's place is the number by which the page knows it.

    Attributes:
        plan: the dataset.
        table: what is known of each row without its vectors, a chunk for each part.
        parts: names of the parts.
        firsts: int64 [p + 1], the place of each part's first row.
        names: NAME records [n].
        order: int64 [n], all places sorted by (shard, row).
        chosen: bool [n], the rows of the selection.
        vectors: the vectors.
    """

    plan: BrowsePlan
    table: pa.Table
    parts: Sequence[str]
    firsts: np.ndarray
    names: np.ndarray
    order: np.ndarray
    chosen: np.ndarray
    vectors: Vectors

    def part_of(self, place: int) -> tuple[int, int]:
        """Return which part a row is in, and its place there."""
        part = int(np.searchsorted(self.firsts, place, side="right")) - 1
        return part, place - int(self.firsts[part])

    def shard_of(self, place: int) -> str:
        """Return the URI of a row's shard."""
        return self.plan.dataset.shards[self.parts[self.part_of(place)[0]]]

    def rows(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """Return what is known of some rows, column → value."""
        found = []
        for place in places:
            part, inside = self.part_of(int(place))
            columns = zip(self.table.column_names, self.table.columns, strict=True)
            found.append({name: column.chunk(part)[inside].as_py() for name, column in columns})
        return found

    def samples_with_key(self, key: str) -> int:
        """Return how many rows have a key."""
        return pc.sum(pc.equal(self.table.column("key"), key)).as_py() or 0

    @functools.cached_property
    def labels(self) -> Mapping[str, list[tuple[str, int]]]:
        """Taxonomy → its labels and how many rows of the selection have each, the most frequent first."""
        found = {}
        for taxonomy in self.plan.searched.classes:
            column = self._of_chosen(f"{taxonomy}.label").drop_null()
            counts = [(one["values"], one["counts"]) for one in pc.value_counts(column).to_pylist()]
            found[taxonomy] = sorted(counts, key=lambda item: (-item[1], item[0]))[:_MOST_VALUES]
        return found

    @functools.cached_property
    def scores(self) -> tuple[float, float] | None:
        """The smallest and the largest `clip_score` of the selection; None if no row has one."""
        ends = pc.min_max(self._of_chosen("clip_score")).as_py()
        return None if ends["min"] is None else (ends["min"], ends["max"])

    def _of_chosen(self, name: str) -> pa.ChunkedArray:
        column = self.table.column(name)
        return column if self.chosen.all() else column.filter(pa.array(self.chosen))
