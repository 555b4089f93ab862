"""Read row groups so that memory holds pages, and so that damage costs as few rows as possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.batches import MAX_BATCH_BYTES
from clip_transforms.shards.unit import ShardError

# Errors that damaged bytes cause; UnicodeDecodeError comes from names of columns.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
_NAMED = 5  # number of damaged places that a reject names


def open_parquet(file: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file so that memory holds pages, not row groups."""
    # Some writers add checksums. With them, a flipped bit is found rather than embedded.
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)


def rows_that_fit(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return how many rows of average size make MAX_BATCH_BYTES; a batch is in memory before its sizes are known."""
    found = [metadata.row_group(group) for group in groups]
    num_bytes, rows = sum(group.total_byte_size for group in found), sum(group.num_rows for group in found)
    return max(1, MAX_BATCH_BYTES * rows // num_bytes) if num_bytes > 0 and rows > 0 else MAX_BATCH_BYTES


def read_row_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], first_row: int, batch_size: int, columns: list[str] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (place of the first row, batch). Damage costs the rest of its row group and no more.

    Args:
        parquet: the file.
        groups: numbers of consecutive row groups.
        first_row: place of their first row.
        batch_size: maximum number of rows in a batch.
        columns: names of the columns to read; all by default.
    Raises:
        ShardError: after all readable rows, naming those that cannot be read.
    """
    row, start, lost = first_row, first_row, []
    try:
        for batch in parquet.iter_batches(batch_size, list(groups), columns, use_threads=False):
            batch.validate()
            yield row, batch
            row += batch.num_rows
    except DAMAGE as error:
        if storage.is_of_the_machine(error):
            raise
        lost.append(f"{type(error).__name__}: {error}")
    if not lost and row == first_row + sum(parquet.metadata.row_group(group).num_rows for group in groups):
        return
    lost.clear()
    for group in groups:  # again, one by one, without the rows that were yielded already
        stop = start + parquet.metadata.row_group(group).num_rows
        problem = "it ends early"
        try:
            for batch in _row_by_row(parquet, group, row - start, batch_size, columns) if row < stop else ():
                yield row, batch
                row += batch.num_rows
        except DAMAGE as error:
            if storage.is_of_the_machine(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        if row < stop:
            lost.append(f"rows {row:,} to {stop - 1:,} cannot be read ({problem})")
        row, start = max(row, stop), stop
    if lost:
        more = f"; {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
        raise ShardError("unreadable", "; ".join(lost[:_NAMED]) + more)


def _row_by_row(
    parquet: pq.ParquetFile, group: int, skipped: int, batch_size: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a group after the first `skipped` ones, up to the damaged row, wherever batches would end."""
    waiting: list[pa.RecordBatch] = []
    failure = None
    rows = parquet.iter_batches(1, [group], columns, use_threads=False)
    for place in itertools.count():
        try:
            row = next(rows, None)
            if row is not None:
                row.validate()
        except DAMAGE as error:
            if storage.is_of_the_machine(error):
                raise
            row, failure = None, error
        if row is not None and place >= skipped:
            waiting.append(row)
        if waiting and (row is None or len(waiting) == batch_size):
            yield pa.concat_batches(waiting)
            waiting = []
        if row is None:
            break
    if failure is not None:
        raise failure
