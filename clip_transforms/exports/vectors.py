"""Files of vectors and of the rows beside them, written part by part: memory holds the rows of one part."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.parquet_writer import ParquetWriter


@contextlib.contextmanager
def new_file(uri: str, scratch: str) -> Iterator[str]:
    """Yield the path of a local file that appears under its final name, whole, if the block ends well.

    Args:
        uri: URI of the file.
        scratch: URI of the run's temporary folder; the file lies there if it is local.
    """
    folder = storage.normalise(scratch) if storage.is_local(scratch) else None
    handle, local = tempfile.mkstemp(prefix=f"{posixpath.basename(uri)}.", dir=folder)  # for errors, which name it
    os.close(handle)
    try:
        yield local
        os.chmod(local, 0o644)
        storage.commit_file(local, uri)
    finally:
        with contextlib.suppress(FileNotFoundError):  # committing moved it
            os.unlink(local)


class NpyFile:
    """A `.npy` file of a known number of rows; use it as a context manager.

    Its bytes are those of `numpy.save`.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: np.dtype):
        """Write the header.

        Args:
            path: path of a local file.
            shape: the shape of the whole array, in C order.
            dtype: the type of its values.
        """
        self._file = storage.open_output(path)  # closed by __exit__
        self._dtype, self._left = dtype, shape[0]
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, described)

    def add(self, rows: np.ndarray) -> None:
        """Add rows."""
        self._left -= len(rows)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def __enter__(self) -> NpyFile:
        """The file itself."""
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        """Close it."""
        self._file.close()
        assert kind or not self._left, f"{self._left} rows are missing"


class RowsFile:
    """A Parquet file of rows; use it as a context manager."""

    def __init__(self, path: str):
        """Write nothing yet; the first table decides the schema."""
        self._path = path
        self._writer: ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows. A table without rows makes no row group, since some readers fail on an empty one."""
        if self._writer is None:
            self._writer = ParquetWriter(self._path, table.schema, compression="zstd")
        if table.num_rows:
            self._writer.write_table(table)

    def __enter__(self) -> RowsFile:
        """The file itself."""
        return self

    def __exit__(self, *_) -> None:
        """Finish it."""
        if self._writer is not None:
            self._writer.close()


def plain(table: pa.Table, names: Mapping[str, str] | None = None) -> pa.Table:
    """Return a table with plain texts instead of dictionaries, and with some columns renamed.

    A column that has the new name of an earlier one gets another; see `distinct`.
    """
    columns = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(columns, distinct([(names or {}).get(name, name) for name in table.column_names]))


def distinct(names: Iterable[str], taken: Collection[str] = ()) -> list[str]:
    """Return names of which each comes once and none is taken: those that would be begin with `my_`."""
    found: list[str] = []
    for name in names:
        while name in taken or name in found:
            name = f"my_{name}"
        found.append(name)
    return found
