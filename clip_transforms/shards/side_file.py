"""Side files: Parquet files beside a plan that hold the paths of a folder or the rows of a listing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Container, Iterator
from typing import Protocol

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.parquet_writer import ParquetWriter


class SideFile(Protocol):
    """A Parquet file beside the plan that holds a folder's paths or a listing's rows."""

    schema: pa.Schema

    def tables(self, wanted: Container[str]) -> Iterator[pa.Table]:
        """Yield one table per row group; those of parts that are not wanted may be empty."""


def write_side_file(folder: str, name: str, rows: SideFile, wanted: Container[str]) -> None:
    """Write a side file, one row group at a time: it may be larger than memory.

    Args:
        folder: URI of the folder of the plan.
        name: name of the file.
        rows: its content.
        wanted: names of the parts whose rows are wanted.
    """
    handle, local = tempfile.mkstemp(dir=folder if storage.is_local(folder) else None)
    os.close(handle)
    try:
        with ParquetWriter(local, rows.schema) as writer:
            for table in rows.tables(wanted):
                writer.write_table(table)
        storage.commit_file(local, storage.join(folder, name))
    finally:
        with contextlib.suppress(FileNotFoundError):  # committing moved it
            os.unlink(local)
