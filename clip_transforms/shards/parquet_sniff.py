"""Recognise a column of pictures by its first bytes, in Parquet files where no column has a usual name.

The first pages of one row group are read for it, of the columns that could be pictures by their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.shards.parquet_images import image_bytes
from clip_transforms.shards.places import column_of, values_at
from clip_transforms.shards.row_groups import DAMAGE

_ROWS_AT_ONCE = 16
_MAX_ROWS = 1_000  # rows in which the first value is looked for
_BEGINNING = 64  # bytes


def begin_as_pictures(parquet: pq.ParquetFile, places: Sequence[str]) -> list[str]:
    """Return those places whose first values begin with the magic number of a picture."""
    groups = (g for g in range(parquet.num_row_groups) if parquet.metadata.row_group(g).num_rows)
    group = next(groups, None)
    if group is None:
        return []
    return [place for place in places if any(map(picture_format, _beginnings(parquet, group, place)))]


def _beginnings(parquet: pq.ParquetFile, group: int, place: str) -> Iterator[bytes]:
    """Yield the beginnings of the first few values at a place that are not null."""
    rows = 0
    try:
        for batch in parquet.iter_batches(
            _ROWS_AT_ONCE, [group], [column_of(parquet.schema_arrow, place)], use_threads=False
        ):
            values = image_bytes(values_at(batch, place)).drop_null()
            yield from (value.as_buffer()[:_BEGINNING].to_pybytes() for value in values)
            rows += batch.num_rows
            if len(values) or rows >= _MAX_ROWS:
                return
    except DAMAGE as error:  # the reader will say what is damaged
        if storage.is_of_the_machine(error):
            raise
