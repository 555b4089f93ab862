"""Recognise a column of pictures by its first bytes, in Parquet files where no column has a usual name.

The first pages of one row group are read for it, of the columns that could be pictures by their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.shards.inline import is_inline
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.parquet_images import image_bytes, paths_without_bytes
from clip_transforms.shards.places import column_of, values_at
from clip_transforms.shards.row_groups import DAMAGE

_ROWS_AT_ONCE = 16
_MAX_ROWS = 1_000  # rows in which the first value is looked for
_BEGINNING = 64  # bytes


def begin_as_pictures(parquet: pq.ParquetFile, places: Sequence[str]) -> list[str]:
    """Return those places where one of the first values begins with the magic number of a picture, also as base64.

    Where a value has a path and no bytes, the extension of the path decides.
    """
    groups = (g for g in range(parquet.num_row_groups) if parquet.metadata.row_group(g).num_rows)
    group = next(groups, None)
    return [] if group is None else [place for place in places if any(_are_pictures(parquet, group, place))]


def _are_pictures(parquet: pq.ParquetFile, group: int, place: str) -> Iterator[bool]:
    """Say of the first few values at a place that are not null whether they look like pictures."""
    column = column_of(parquet.schema_arrow, place)
    rows = found = 0
    try:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, [group], [column], use_threads=False):
            values = values_at(batch, place)
            for value in image_bytes(values).drop_null():
                found += 1
                start = value.as_buffer()[:_BEGINNING].to_pybytes()
                yield picture_format(start) is not None or is_inline(start.decode("latin-1"))
            for path in paths_without_bytes(values) or ():
                if path is not None:
                    found += 1
                    yield kind_of(path.partition("?")[0]) == "image"
            rows += batch.num_rows
            if found or rows >= _MAX_ROWS:
                return
    except DAMAGE as error:  # the reader will say what is damaged
        if storage.is_of_the_machine(error):
            raise
