"""Load a dataset for many questions: its rows as a table, and its vectors as a matrix or an index.

A large dataset is read from Parquet once and kept in the cache folder, as files that are mapped into memory; opening
them again takes milliseconds. A small one is read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.browsing.loaded import Indexed, Loaded, Matrix, Vectors
from clip_transforms.browsing.plan import BrowsePlan
from clip_transforms.parts.reader import read_table
from clip_transforms.parts.vectors import read_vectors
from clip_transforms.select.index_folder import INDEX, ROWS
from clip_transforms.select.nearest import NAME
from clip_transforms.select.vector_index import open_index

KEPT_ROWS = 20_000  # a dataset of fewer rows is read in a second, and leaves no files
_FORMAT = 1  # of the files
_COLUMNS = {
    "key": pa.string(),
    "row": pa.int64(),
    "caption": pa.string(),
    "clip_score": pa.float32(),
    "width": pa.int32(),
    "height": pa.int32(),
    "image_sha256": pa.string(),
}
_LOGGER = logging.getLogger(__name__)


def load(plan: BrowsePlan, progress: Callable[[float], None], stack: contextlib.ExitStack) -> Loaded:
    """Load a dataset.

    Args:
        plan: the dataset.
        progress: is told now and then which fraction is done.
        stack: closes what stays open, such as the copy of an index that lies elsewhere.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if the dataset is damaged or has changed meanwhile.
    """
    steps = _Steps(progress, len(plan.parts) * (2 if plan.index is None else 1))
    table = _table(plan, steps)
    parts, rows = plan.parts, plan.dataset.rows
    firsts = np.cumsum([0, *(rows[part] for part in parts)])
    names = _names(plan, table, firsts)
    order = np.lexsort((names["row"], names["shard"]))
    chosen = np.ones(len(names), bool)
    if plan.selection.places:
        masks = (plan.selection.mask(part, _chunk(table, "row", at)) for at, part in enumerate(parts))
        chosen = np.concatenate([*masks, np.empty(0, bool)])
    if plan.index is None:
        vectors: Vectors = Matrix(*_matrix(plan, steps), names)
    else:
        vectors = _indexed(plan, names, firsts, stack)
    loaded = Loaded(plan, table, parts, firsts, names, order, chosen, vectors)
    _ = loaded.labels, loaded.scores, vectors.there  # so that no question waits for them
    return loaded


class _Steps:
    """Counts what is done."""

    def __init__(self, progress: Callable[[float], None], total: int):
        self._progress, self._total, self._done = progress, max(1, total), 0

    def done(self, steps: int = 1) -> None:
        self._done += steps
        self._progress(self._done / self._total)


def _prefix(plan: BrowsePlan) -> str:
    return f"{_FORMAT}-{plan.digest[:16]}-"


def _keeps(plan: BrowsePlan) -> bool:
    return sum(plan.dataset.rows.values()) >= KEPT_ROWS


@contextlib.contextmanager
def _or_in_memory(plan: BrowsePlan) -> Iterator[None]:
    """Turn a cache that cannot be written into one warning: everything is held in memory then."""
    try:
        yield
    except OSError as error:
        _LOGGER.warning(
            "the cache %s cannot be written: %s; the dataset is held in memory, and read again at the next start; "
            "--cache names another folder",
            plan.cache.path,
            error.strerror or error,
        )


def _table(plan: BrowsePlan, steps: _Steps) -> pa.Table:
    """Return what is known of the rows, from the cache if it is there."""
    classes = hashlib.sha256(json.dumps(sorted(plan.searched.classes.items())).encode()).hexdigest()
    name = f"{_prefix(plan)}{classes[:16]}.arrow"
    with _or_in_memory(plan):
        plan.cache.clean(_prefix(plan), name)
    kept = plan.cache.place(name)
    if _keeps(plan) and not kept.exists():
        with _or_in_memory(plan), plan.cache.unfinished() as folder:
            with pa.OSFile(str(folder / name), "wb") as sink:
                _write_rows(plan, sink, steps)
            plan.cache.finish(folder, [name])
    elif _keeps(plan):
        steps.done(len(plan.parts))
    if _keeps(plan) and kept.exists():
        return pa.ipc.open_file(pa.memory_map(str(kept))).read_all()
    sink = pa.BufferOutputStream()
    _write_rows(plan, sink, steps)
    return pa.ipc.open_file(sink.getvalue()).read_all()


def _schema(plan: BrowsePlan) -> pa.Schema:
    labels: dict[str, pa.DataType] = {}
    for taxonomy in plan.searched.classes:
        labels |= {f"{taxonomy}.label": pa.string(), f"{taxonomy}.probability": pa.float32()}
    return pa.schema(list((_COLUMNS | labels).items()))


def _write_rows(plan: BrowsePlan, sink: Any, steps: _Steps) -> None:
    """Write a batch for each part."""
    schema, dataset = _schema(plan), plan.dataset
    classes = {f"labels/{taxonomy}": digest for taxonomy, digest in plan.searched.classes.items()}
    with pa.ipc.new_file(sink, schema) as writer:
        for part in plan.parts:
            made_from = {"embeddings": dataset.digests[part], **classes}
            table = read_table(dataset.uri, part, schema.names, [*plan.searched.classes], made_from=made_from)
            writer.write_batch(table.cast(schema).combine_chunks().to_batches()[0])
            steps.done()


def _chunk(table: pa.Table, column: str, part: int) -> pa.ChunkedArray:
    return pa.chunked_array([table.column(column).chunk(part)])


def _names(plan: BrowsePlan, table: pa.Table, firsts: np.ndarray) -> np.ndarray:
    shards = plan.dataset.shards
    ranks = {shard: rank for rank, shard in enumerate(sorted(set(shards.values())))}
    names = np.empty(int(firsts[-1]), NAME)
    names["shard"] = np.repeat(np.array([ranks[shards[part]] for part in plan.parts], np.int32), np.diff(firsts))
    names["row"] = table.column("row").to_numpy() if len(names) else 0
    return names


def _matrix(plan: BrowsePlan, steps: _Steps) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors and their lengths, from the cache if they are there."""
    stem = f"{_prefix(plan)}{plan.searched.against}"
    lengths_name, values_name = f"{stem}.lengths", f"{stem}.vectors"
    n, d = sum(plan.dataset.rows.values()), plan.dataset.embed_dim * len(plan.searched.columns)
    kept = plan.cache.place(values_name)
    if _keeps(plan) and not kept.exists():
        with _or_in_memory(plan), plan.cache.unfinished() as folder:
            plan.cache.check_room(4 * n * (d + 1))
            made_lengths = np.memmap(folder / lengths_name, "<f4", "w+", shape=(n,))
            made_values = np.memmap(folder / values_name, "<f4", "w+", shape=(n, d))
            _fill(plan, made_values, made_lengths, steps)
            made_lengths.flush()
            made_values.flush()
            plan.cache.finish(folder, [lengths_name, values_name])
    elif _keeps(plan):
        steps.done(len(plan.parts))
    if _keeps(plan) and kept.exists():
        kept_lengths = np.memmap(plan.cache.place(lengths_name), "<f4", "r", shape=(n,))
        return np.memmap(kept, "<f4", "r", shape=(n, d)), kept_lengths
    values, lengths = np.empty((n, d), np.float32), np.empty(n, np.float32)
    _fill(plan, values, lengths, steps)
    return values, lengths


def _fill(plan: BrowsePlan, values: np.ndarray, lengths: np.ndarray, steps: _Steps) -> None:
    """Fill a matrix [n, d] and the lengths [n] of its rows: zeros and NaN where a row lacks a vector."""
    dataset, first = plan.dataset, 0
    for part in plan.parts:
        for found in read_vectors(dataset.uri, part, dataset.digests[part], plan.searched.columns):
            rows = slice(first + found.first, first + found.first + len(found.valid))
            vectors = found.values.astype(np.float32, copy=False).reshape(len(found.values), -1)
            some = np.zeros((len(found.valid), values.shape[1]), np.float32)
            some[found.valid] = vectors
            values[rows] = some
            of_rows = np.full(len(found.valid), np.nan, np.float32)
            of_rows[found.valid] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            lengths[rows] = of_rows
        first += dataset.rows[part]
        steps.done()


def _indexed(plan: BrowsePlan, names: np.ndarray, firsts: np.ndarray, stack: contextlib.ExitStack) -> Indexed:
    """Open the index, and find the place of the row that each of its ids means."""
    assert plan.index is not None
    path = stack.enter_context(storage.local_copy(storage.join(plan.index.uri, INDEX)))
    with storage.open_input(storage.join(plan.index.uri, ROWS)) as file:
        table = pq.ParquetFile(file).read(["row", "part"], use_threads=False)
    rows = table.column("row").to_numpy()
    part = pc.index_in(table.column("part").cast(pa.string()), value_set=pa.array(plan.parts, pa.string())).to_numpy()
    places = np.empty(len(rows), np.int64)
    edges = np.unique([0, *(np.flatnonzero(np.diff(part)) + 1), len(part)])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        first, end = firsts[part[start]], firsts[part[start] + 1]
        own = names["row"][first:end]
        sorter = np.argsort(own, kind="stable")
        places[start:stop] = first + sorter[np.searchsorted(own, rows[start:stop], sorter=sorter)]
    return Indexed(plan, open_index(path), places, plan.parts, firsts)
