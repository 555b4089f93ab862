"""One part while it is written: a Parquet file of row groups, and the digest of a unit's rows."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator

import pyarrow as pa

from clip_transforms.parts.parquet_writer import ParquetWriter
from schemas.embeddings import EMBEDDINGS
from schemas.provenance import Footer, encode_footer

_ROW_GROUP_ROWS = 4_096
# Columns whose values mostly differ from row to row, as floats do too. A dictionary would repeat all of them.
_DISTINCT = frozenset({"key", "row", "caption", "image_sha256", "metadata"})


class PartFile:
    """A local Parquet file that is being written, in row groups of a few thousand rows."""

    def __init__(self, folder: str, kind: str, schema: pa.Schema):
        self.path = os.path.join(folder, kind.replace("/", "-") + ".parquet")
        self._schema = schema
        self._waiting = WaitingRows(schema)
        self._writer = ParquetWriter(
            self.path,
            schema,
            compression="zstd",
            use_dictionary=[path for path, type_ in _columns(schema) if _repeats(path, type_)],
            column_encoding={
                path: encoding for path, type_ in _columns(schema) if (encoding := _encoding(path, type_))
            },
            write_statistics=[f.name for f in schema if f.name not in EMBEDDINGS],
        )

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch. A batch without rows makes no row group, since some readers fail on an empty one."""
        if batch.num_rows:
            self._waiting.add(batch)
        if self._waiting.rows >= _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting.rows:
            self._writer.write_table(self._waiting.table(), row_group_size=1 << 30)
            self._waiting = WaitingRows(self._schema)

    def close(self, footer: Footer) -> None:
        """Finish the file with its footer."""
        self._flush()
        self._writer.add_key_value_metadata(encode_footer(footer))
        self._writer.close()

    def discard(self) -> None:
        """Close the file handle. The file is no longer needed, so a full disk does not matter."""
        with contextlib.suppress(OSError):
            self._writer.close()


def _columns(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Yield the columns of a Parquet file: their paths, such as `top.list.element.label`, and types."""
    for field in fields:
        path, type_ = f"{prefix}{field.name}", field.type
        if pa.types.is_list(type_):
            yield from _columns([type_.value_field.with_name("element")], f"{path}.list.")
        elif pa.types.is_struct(type_):
            yield from _columns(type_, f"{path}.")
        else:
            yield path, type_


def _repeats(path: str, type_: pa.DataType) -> bool:
    return path not in _DISTINCT and not pa.types.is_floating(type_)


def _encoding(path: str, type_: pa.DataType) -> str | None:
    """Return the encoding of a column without a dictionary; None for plain values, which every reader knows."""
    if path == "row":
        return "DELTA_BINARY_PACKED"
    return "BYTE_STREAM_SPLIT" if path.partition(".")[0] in EMBEDDINGS and pa.types.is_float32(type_) else None


class WaitingRows:
    """Rows that wait until their row group is full, as one buffer in Arrow's memory pool.

    As batches they would be many small objects in the C heap, between the model's activations, and the heap would grow
    until the row group is written (docs/decisions.md).
    """

    def __init__(self, schema: pa.Schema):
        """Start empty; every batch has this schema."""
        self.rows = 0
        self._sink = pa.BufferOutputStream()
        self._stream = pa.ipc.new_stream(self._sink, schema)

    def add(self, batch: pa.RecordBatch) -> None:
        """Copy the rows of a batch. The batch itself is not kept."""
        self._stream.write_batch(batch)
        self.rows += batch.num_rows

    def table(self) -> pa.Table:
        """Return all rows, one chunk per batch. Nothing can be added afterwards."""
        self._stream.close()
        return pa.ipc.open_stream(self._sink.getvalue()).read_all()


class Digest:
    """SHA-256 over the rows of the embeddings, the rejects and, if a run takes them, all captions, as Arrow IPC."""

    def __init__(self, embeddings: pa.Schema, rejects: pa.Schema, captions: pa.Schema | None = None):
        schemas = [embeddings, rejects, *([] if captions is None else [captions])]
        self._streams = [_HashedStream(schema) for schema in schemas]

    def add_rows(self, rows: pa.RecordBatch) -> None:
        """Take rows of the embeddings."""
        self._streams[0].write(rows)

    def add_rejects(self, rejects: pa.RecordBatch) -> None:
        """Take rows of the rejects."""
        self._streams[1].write(rejects)

    def add_captions(self, captions: pa.RecordBatch) -> None:
        """Take rows of all captions."""
        self._streams[2].write(captions)

    def hexdigest(self) -> str:
        """The digest of all that was taken, 64 hex digits."""
        return hashlib.sha256("".join(s.hexdigest() for s in self._streams).encode()).hexdigest()


class _HashedStream:
    """An Arrow IPC stream that is hashed and not kept."""

    def __init__(self, schema: pa.Schema):
        self._hash = hashlib.sha256()
        self._schema = schema

    def write(self, batch: pa.RecordBatch) -> None:
        # One stream per batch: Arrow then writes slices as plain rows, so equal rows give equal bytes.
        if batch.num_rows:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self._schema) as stream:
                stream.write_batch(batch)
            self._hash.update(sink.getvalue())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
