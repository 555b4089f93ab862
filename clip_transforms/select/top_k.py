"""The rows nearest to each query: exact, in blocks, whatever the order in which the rows come.

A quick product proposes rows; a float64 sum in a fixed order decides. So the result depends on neither the blocks nor
the machine, and equal rows tie.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from clip_transforms.select.cosines import dots
from clip_transforms.select.products import ways

# A row that was found for a query: place of the query, float32 similarity, place of the shard's URI among all, sorted,
# place in the shard, and place of the part among the dataset's parts.
FOUND = np.dtype([("query", "<i4"), ("similarity", "<f4"), ("shard", "<i4"), ("row", "<i8"), ("part", "<i4")])
ROW = np.dtype([("shard", "<i4"), ("row", "<i8"), ("part", "<i4")])
NOTHING = np.empty(0, FOUND)
_VALUES = 1 << 22  # products at once: 16 MB
_TILE = 128
_FEW = 4  # candidates for each row that is wanted
_PAIRS = 2_048


def best(found: np.ndarray, k: int) -> np.ndarray:
    """Return the best k rows of each query, best first; ties by (shard, row). The order of the input does not matter.

    Args:
        found: FOUND records.
        k: number of rows a query.
    Returns:
        FOUND records, sorted by query.
    """
    order = np.lexsort((found["row"], found["shard"], -found["similarity"], found["query"]))
    found = found[order]
    queries, first = np.unique(found["query"], return_index=True)
    return found[ranks(found) < k]


def ranks(found: np.ndarray) -> np.ndarray:
    """Return the place of each record among those of its query, int64 [n]; they are sorted by query."""
    queries, first = np.unique(found["query"], return_index=True)
    return np.arange(len(found)) - np.append(first, 0)[np.searchsorted(queries, found["query"])]


class TopK:
    """The best k rows of each query among those that were added.

    Attributes:
        queries: float32 [q, d].
    """

    def __init__(self, queries: np.ndarray, k: int):
        """Start with none.

        Args:
            queries: float32 [q, d].
            k: number of rows a query.
        """
        self.queries, self._k = queries, k
        self._found, self._waiting = NOTHING, [NOTHING]
        self._least = np.full(len(queries), -np.inf, np.float32)  # k-th similarity so far

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Add rows.

        Args:
            rows: ROW records [n].
            values: float32 or float16 [n, d], as stored; rows with NaN or infinite values are never found.
        """
        vectors = values.astype(np.float32, copy=False)
        lengths = _lengths(vectors)
        if not (finite := np.isfinite(lengths)).all():
            rows, vectors, lengths = rows[finite], vectors[finite], lengths[finite]
        if not len(rows):
            return
        longest = float(lengths.max())
        step = max(1, _VALUES // len(rows))
        for first in range(0, len(self.queries), step):
            self._add(slice(first, first + step), rows, vectors, longest)
        if sum(map(len, self._waiting)) > max(_PAIRS, len(self._found) // 2):
            self._settle()

    def _add(self, some: slice, rows: np.ndarray, vectors: np.ndarray, longest: float) -> None:
        queries = self.queries[some]
        longest *= float(_lengths(queries).max())  # none of them need have length 1
        for multiply in ways(len(queries)):
            near, far = multiply(queries, vectors)
            query, row = self._candidates(some, near, far * longest)
            if len(query) <= _FEW * self._k * len(queries):
                break  # else many rows are too near to each other for a quick product
        found = np.empty(len(query), FOUND)
        found["query"] = query + some.start
        for name in ("shard", "row", "part"):
            found[name] = rows[name][row]
        for first in range(0, len(query), _PAIRS):
            of = slice(first, first + _PAIRS)
            found["similarity"][of] = dots(queries[query[of]], vectors[row[of]])
        self._waiting.append(found)

    def _candidates(self, some: slice, near: np.ndarray, far: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in some products that may be among the best.

        Args:
            some: the queries.
            near: float32 [q, n], their products.
            far: how far a product may be from the exact one.
        """
        least = self._least[some] - far
        if near.shape[1] > self._k and (new := np.isneginf(least)).any():
            place = near.shape[1] - self._k
            least[new] = np.partition(near[new], place, axis=1)[:, place] - 2 * far
        return _at_least(near, least)

    def _settle(self) -> None:
        """Keep the best of all rows so far."""
        self._found = best(np.concatenate([self._found, *self._waiting]), self._k)
        self._waiting = [NOTHING]
        counts = np.bincount(self._found["query"], minlength=len(self.queries))
        last = np.cumsum(counts) - 1
        full = counts == self._k
        self._least[full] = self._found["similarity"][last[full]]

    @property
    def found(self) -> np.ndarray:
        """The best rows so far: FOUND records, as `best` returns them."""
        self._settle()
        return self._found


def _at_least(near: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the products [q, n] that are at least as large as asked for in their row, `least` [q].

    There are few, so whole tiles are passed over by their maxima.
    """
    whole = near.shape[1] // _TILE * _TILE
    tiles = near[:, :whole].reshape(len(near), -1, _TILE)
    query, tile = np.nonzero(tiles.max(axis=2) >= least[:, None])
    some, inside = np.nonzero(tiles[query, tile] >= least[query, None])
    of_rest, rest = np.nonzero(near[:, whole:] >= least[:, None])
    rows = tile[some] * _TILE + inside
    return np.concatenate([query[some], of_rest]), np.concatenate([rows, rest + whole])


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors [n, d], float32 [n]."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


@dataclasses.dataclass
class Rows:
    """Rows that wait until there are enough of them for a product. Small parts make larger blocks so."""

    top: TopK
    least: int = 2_048
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    values: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Add ROW records [n] and their vectors [n, d]."""
        self.rows.append(rows)
        self.values.append(values)
        if sum(map(len, self.rows)) >= self.least:
            self.flush()

    def flush(self) -> None:
        """Compare the rows that wait."""
        if self.rows:
            rows, values = (of[0] if len(of) == 1 else np.concatenate(of) for of in (self.rows, self.values))
            self.top.add(rows, values)
        self.rows, self.values = [], []
