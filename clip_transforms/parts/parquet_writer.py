"""Write a local Parquet file. If that fails, the error names the file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage


class ParquetWriter(pq.ParquetWriter):
    """A `pyarrow.parquet.ParquetWriter` whose errors of writing name its file."""

    def __init__(self, path: str, schema: pa.Schema, **options: Any):
        """Open the local file; `options` are those of Arrow's writer."""
        self._path = path
        with storage.naming(path):
            super().__init__(path, schema, **options)

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write the rows of a table."""
        with storage.naming(self._path):
            super().write_table(table, row_group_size)

    def close(self) -> None:
        """Finish the file."""
        with storage.naming(self._path):
            super().close()
