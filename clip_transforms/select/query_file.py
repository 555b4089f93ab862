"""Queries in a file: a text a line, or a Parquet or CSV file with a column of texts or of embeddings."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.csv_table import read_csv


class QueryError(ValueError):
    """A query that cannot be asked, in one sentence."""


def read_query_file(uri: str, d: int) -> list[tuple[str, np.ndarray | None]]:
    """Read a file of queries into memory.

    Args:
        uri: a `.parquet` or `.csv` file with a column `embedding` or `text`, or any other file with a text a line.
        d: number of values of an embedding.
    Returns:
        For each query its text and None, or a name and its embedding, float32 [d]: of an embedding without a text the
        name is its place in the file, counted from 0.
    Raises:
        QueryError: if it is no such file, or has no queries.
    """
    kind = uri.lower().rpartition(".")[2]
    if not storage.exists(uri) or storage.is_folder(uri):
        raise QueryError(f"--queries {uri} is no file; give a text file, or a .parquet or .csv file")
    data = storage.read_bytes(uri)
    queries = _table(uri, data, kind, d) if kind in ("parquet", "csv") else _lines(uri, data)
    if not queries:
        raise QueryError(f"--queries {uri} is empty; give a file with a text a line, or with a row for each query")
    return queries


def _lines(uri: str, data: bytes) -> list[tuple[str, np.ndarray | None]]:
    try:
        return [(line, None) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise QueryError(f"--queries {uri} is not UTF-8; write one text a line in UTF-8") from error


def _table(uri: str, data: bytes, kind: str, d: int) -> list[tuple[str, np.ndarray | None]]:
    try:
        if kind == "parquet":
            file = pq.ParquetFile(io.BytesIO(data))
            names = [name for name in ("text", "embedding") if name in file.schema_arrow.names]
            found, table = file.schema_arrow.names, file.read(names, use_threads=False)
        else:
            types = {name: pa.string() for name in ("text", "embedding")}
            table = read_csv(data, types)
            found, names = table.column_names, [name for name in ("text", "embedding") if name in table.column_names]
    except (pa.ArrowException, OSError) as error:
        if storage.is_of_the_machine(error):
            raise
        raise QueryError(f"--queries {uri} cannot be read: {' '.join(str(error).split())}") from error
    if not names:
        raise QueryError(f"--queries {uri} must have a column text or embedding, but it has {', '.join(found)}")
    columns = {name: table.column(name).to_pylist() for name in names}
    texts = columns.get("text") or [None] * table.num_rows
    if "embedding" not in names:
        return [(_text(uri, row, text), None) for row, text in enumerate(texts)]
    pairs = enumerate(zip(texts, columns["embedding"], strict=True))
    return [(str(row) if text is None else str(text), _vector(uri, row, value, d)) for row, (text, value) in pairs]


def _text(uri: str, row: int, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise QueryError(f"--queries {uri} has {text!r} in row {row} of text; leave rows without a text out")
    return text


def _vector(uri: str, row: int, value: Any, d: int) -> np.ndarray:
    """Return an embedding; in a CSV it is a list in JSON."""
    try:
        vector = np.asarray(json.loads(value) if isinstance(value, str) else value, np.float32)
    except (ValueError, TypeError) as error:
        raise QueryError(f"--queries {uri} has no list of numbers in row {row} of embedding: {value!r:.60}") from error
    if vector.shape != (d,):
        found = f"{vector.size} values" if vector.ndim == 1 else "no list of numbers"
        raise QueryError(f"--queries {uri} has {found} in row {row} of embedding, but the dataset's have {d}")
    return vector
