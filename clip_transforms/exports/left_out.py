"""The rows that an export left out because their pictures are lost: a list beside each tar, and one file of all."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.vectors import new_file
from clip_transforms.parts.parquet_writer import ParquetWriter
from schemas.left_out import left_out_schema

NAME = "left_out.parquet"
_THREADS = 16  # many small files are read, perhaps from far away


def write_left_out(stats: Sequence[str], output: str, scratch: str) -> int:
    """Write `left_out.parquet`, unless there are no such rows; their number. Memory holds those of a few tars.

    Args:
        stats: URIs of the `_stats.json` of all tars, in order.
        output: URI of the export.
        scratch: URI of the run's temporary folder.
    """
    schema, found = left_out_schema(), 0
    with new_file(storage.join(output, NAME), scratch) as local, ParquetWriter(local, schema) as writer:
        for rows in _lists(stats):
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, _plain(schema)).cast(schema))
                found += len(rows)
    return found


def _lists(stats: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for data in pool.map(storage.read_bytes, stats):
            yield json.loads(data).get("left_out", [])


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return the schema with texts instead of dictionaries."""
    types = (field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema)
    return pa.schema(list(zip(schema.names, types, strict=True)))
