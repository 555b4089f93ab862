"""A faiss index over the vectors of a dataset: how it is made, how hard it searches, and how good that is."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from clip_transforms.select.blocks import one_thread
from clip_transforms.select.query_file import QueryError

AUTO, FLAT, HNSW, IVF = "auto", "flat", "hnsw", "ivf"
KINDS = (AUTO, FLAT, HNSW, IVF)
NEAREST = 10  # recall is measured at
_WANTED_RECALL = 0.99
_FLAT_ROWS = 50_000  # up to so many, comparing all takes milliseconds
_LISTS_PER_ROOT, _ROWS_PER_LIST, _ITERATIONS = 2, 32, 10
_MOST_LISTS, _FEW_LISTS = 20, 16  # a query looks at one list in so many at most, or at a few
_NEIGHBOURS, _BUILT_WITH, _MOST_HOPS = 32, 100, 1_024


def import_faiss() -> Any:
    """Import faiss.

    Raises:
        QueryError: if it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise QueryError(
            "an index needs faiss, which is not installed: pip install 'clip-transforms[search]'"
        ) from None


def kind_for(kind: str, rows: int) -> str:
    """Return the kind that `auto` means."""
    return kind if kind != AUTO else FLAT if rows <= _FLAT_ROWS else IVF


def how_many_trained(kind: str, rows: int) -> int:
    """Return how many rows of a sample `new_index` wants to see."""
    return _ROWS_PER_LIST * _lists(rows) if kind == IVF else 0


def _lists(rows: int) -> int:
    return max(1, int(_LISTS_PER_ROOT * rows**0.5))


def new_index(kind: str, d: int, rows: int, sample: np.ndarray, seed: int) -> Any:
    """Make an empty index of float16 vectors, whose similarities are inner products.

    Args:
        kind: `flat`, `hnsw` or `ivf`.
        d: number of values of a vector.
        rows: number of rows that it will have.
        sample: float32 [s, d], some of the rows; IVF makes its lists of them.
        seed: seed of the lists.
    """
    faiss = import_faiss()
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    if kind == FLAT:
        return faiss.IndexScalarQuantizer(d, half, product)
    if kind == HNSW:
        index = faiss.IndexHNSWSQ(d, half, _NEIGHBOURS, product)
        index.hnsw.efConstruction = _BUILT_WITH
        index.train(np.eye(1, d, dtype=np.float32))  # float16 learns nothing
        return index
    lists = max(1, min(_lists(rows), len(sample)))
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(d), d, lists, half, product, False)
    index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = seed, _ITERATIONS, 1
    index.cp.max_points_per_centroid = max(1, len(sample))
    with one_thread():
        index.train(sample if len(sample) else np.eye(1, d, dtype=np.float32))
    return index


def open_index(path: str) -> Any:
    """Open an index. Its vectors are mapped into memory: only what a search looks at is read."""
    faiss = import_faiss()
    return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)


def search_index(
    index: Any, queries: np.ndarray, k: int, effort: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows.

    Args:
        index: an index of `new_index` or `open_index`.
        queries: float32 [q, d].
        k: number of rows a query.
        effort: how many lists of IVF, or candidates of HNSW, a query looks at; see `tune`.
        allowed: bool [rows], which of them may be found; the fewer, the more a query looks at.
    Returns:
        Similarities float32 [q, k], and ids int64 [q, k], -1 where there are no more.
    """
    faiss = import_faiss()
    if not index.ntotal or not len(queries):  # faiss takes neither
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    k, selector = min(k, index.ntotal), None
    if allowed is not None:
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        effort = -(-effort * len(allowed) // max(1, int(np.count_nonzero(allowed))))
    return index.search(queries, k, params=_parameters(faiss, index, max(effort, k), effort, selector))


def _parameters(faiss: Any, index: Any, hops: int, lists: int, selector: Any) -> Any:
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(lists, index.nlist), sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=min(hops, max(index.ntotal, 1)), sel=selector)
    return faiss.SearchParameters(sel=selector)


def efforts(index: Any) -> list[int]:
    """Return the efforts that `tune` tries, in order."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexIVF):
        most = min(index.nlist, max(_FEW_LISTS, index.nlist // _MOST_LISTS))
    elif isinstance(index, faiss.IndexHNSW):
        most = _MOST_HOPS
    else:
        return [1]
    steps = [2**power for power in range(most.bit_length())]
    return [*steps, *([most] if steps[-1] < most else [])]


def tune(index: Any, asked: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Return the smallest effort with which the recall of each set of queries is 0.99, or else the largest.

    Args:
        index: the index.
        asked: (queries, exact) of each set; `exact` as for `recall`.
    """
    for effort in efforts(index):
        if all(recall(index, *of, effort) >= _WANTED_RECALL for of in asked):
            break
    return effort


def recall(index: Any, queries: np.ndarray, exact: np.ndarray, effort: int) -> float:
    """Return recall@10: which share of the ten nearest rows is among the ten that the index finds.

    Rows that are exactly as near as the tenth count as nearest too; which of equal rows an index finds is chance.

    Args:
        index: the index.
        queries: float32 [q, d].
        exact: FOUND records of at least ten rows a query, or of all there are; `row` holds ids of the index.
        effort: how hard to search.
    """
    ids, hits, wanted = search_index(index, queries, NEAREST, effort)[1], 0, 0
    edges = np.searchsorted(exact["query"], np.arange(len(queries) + 1))
    for found, first, stop in zip(ids, edges[:-1], edges[1:], strict=True):
        count = min(NEAREST, stop - first)
        near = exact["similarity"][first:stop] >= exact["similarity"][first + count - 1] if count else []
        hits += min(count, int(np.isin(found, exact["row"][first:stop][near]).sum()))
        wanted += count
    return hits / wanted if wanted else 1.0
