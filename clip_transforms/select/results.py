"""The results of a search: found rows with their names, captions and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.reader import KEYS, read_table
from clip_transforms.select.top_k import ranks
from schemas.results import LABEL, results_schema

RESULTS = "results.parquet"
_WRITTEN_ROWS = 65_536


def described(
    dataset: str, parts: Sequence[tuple[str, str]], found: np.ndarray, names: Sequence[str], classes: Mapping[str, str]
) -> pa.Table:
    """Return the rows of results.

    Args:
        dataset: URI of the dataset.
        parts: (name, digest) of its parts.
        found: FOUND records, as `top_k.best` returns them.
        names: how results call each query.
        classes: taxonomy whose labels are read → digest of its classes.
    """
    places, inverse = _distinct(found)
    tables = []
    for number in np.unique(places["part"]).tolist():
        name, digest = parts[number]
        tables.append(_of_part(dataset, name, digest, places["row"][places["part"] == number], classes))
    rows = pa.concat_tables([_nothing(classes), *tables]).take(pa.array(inverse, pa.int64()))
    columns = {
        "query": pa.array(names, pa.string()).take(pa.array(found["query"])),
        "rank": pa.array(ranks(found) + 1, pa.int32()),
        "similarity": pa.array(found["similarity"]),
        **{name: rows.column(name) for name in (*KEYS, "caption")},
        "labels": _labels(rows, list(classes)),
    }
    schema = results_schema()
    columns["shard"] = columns["shard"].dictionary_encode().cast(schema.field("shard").type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _distinct(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row that was found once, sorted by part and row, and for each record the place of its row there."""
    order = np.lexsort((found["row"], found["part"]))
    rows = found[order]
    first = np.ones(len(rows), bool)
    first[1:] = (np.diff(rows["part"]) != 0) | (np.diff(rows["row"]) != 0)
    inverse = np.empty(len(rows), np.int64)
    inverse[order] = np.cumsum(first) - 1
    return rows[first], inverse


def _columns(classes: Mapping[str, str]) -> list[str]:
    return [*KEYS, "caption", *(f"{taxonomy}.{field.name}" for taxonomy in classes for field in LABEL)]


def _nothing(classes: Mapping[str, str]) -> pa.Table:
    types = {"row": pa.int64()} | {f"{taxonomy}.probability": pa.float32() for taxonomy in classes}
    return pa.table({name: pa.array([], types.get(name, pa.string())) for name in _columns(classes)})


def _of_part(dataset: str, part: str, digest: str, rows: np.ndarray, classes: Mapping[str, str]) -> pa.Table:
    """Read some rows of a part, in their order."""
    made_from = {"embeddings": digest, **{f"labels/{taxonomy}": of for taxonomy, of in classes.items()}}
    table = read_table(dataset, part, _columns(classes), [*classes], made_from=made_from)
    places = pc.index_in(pa.array(rows), value_set=table.column("row").combine_chunks())
    return table.take(places).cast(_nothing(classes).schema)


def _labels(rows: pa.Table, taxonomies: Sequence[str]) -> pa.Array:
    """Return a map of the taxonomies that a row has a label of."""
    n, t = rows.num_rows, len(taxonomies)
    columns = [[rows.column(f"{taxonomy}.{field.name}").combine_chunks() for field in LABEL] for taxonomy in taxonomies]
    structs = [pa.StructArray.from_arrays(of, fields=list(LABEL)) for of in columns]
    has = np.stack([np.asarray(of[0].is_valid()) for of in columns], axis=1) if t else np.zeros((n, 0), bool)
    row, taxonomy = np.nonzero(has)
    items = pa.concat_arrays(structs).take(pa.array(taxonomy * n + row)) if t else pa.array([], LABEL)
    offsets = pa.array(np.concatenate([[0], np.cumsum(has.sum(axis=1))]), pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array(taxonomies, pa.string()).take(pa.array(taxonomy)), items)


def write_results(uri: str, table: pa.Table, scratch: str) -> None:
    """Write results as a whole."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        if table.num_rows:  # some readers fail on an empty row group
            writer.write_table(table, row_group_size=_WRITTEN_ROWS)
    storage.write_bytes(uri, sink.getvalue().to_pybytes(), scratch)


def read_results(uri: str) -> pa.Table:
    """Read results that `write_results` wrote."""
    with storage.open_input(uri) as file:
        return pq.ParquetFile(file).read(use_threads=False)
