"""Read pictures of a Parquet file again: only the row groups that hold them."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.cut import cut_parquet
from clip_transforms.shards.parquet_columns import places_of_pictures
from clip_transforms.shards.parquet_files import ParquetFiles, sort_parquet
from clip_transforms.shards.picture_paths import base_within
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions, ShardError
from clip_transforms.shards.wanted import CHANGED, GONE, Picture, Wanted, in_order

_BATCH = 256  # rows; a batch ends earlier where pictures are large


class ParquetUnit:
    """The unit of a Parquet file that a part was made from, with the places of its row groups."""

    def __init__(self, part: str, shard: str, options: ReaderOptions):
        """Look at the file as planning does.

        Raises:
            ShardError: if it is gone, cannot be read, or is cut in another way now.
        """
        self._options = options
        found = _look_at(shard, dataclasses.replace(options, input_format="parquet"))
        for file, metadata in found.images:
            # An input may be a folder above the file, which nobody knows now; whoever reads may permit it.
            base = base_within(options.allow_uri, found, file, metadata, options)
            for unit in cut_parquet(file, metadata, found.recognised.get(file.uri, ""), base):
                if unit.part == part:
                    rows = (metadata.row_group(group).num_rows for group in range(unit.start, unit.stop))
                    self._unit = unit
                    self._firsts = list(itertools.accumulate(rows, initial=unit.first_row))
                    return
        raise ShardError(CHANGED, f"{shard} is cut in another way than when it was embedded")

    def read(self, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Yield a Picture for each wanted row; neighbouring row groups are read at one go."""
        groups = [bisect.bisect_right(self._firsts, one.row) - 1 for one in wanted]
        start = 0
        for stop in range(1, len(wanted) + 1):
            if stop == len(wanted) or groups[stop] > groups[stop - 1] + 1:
                yield from in_order(
                    self._batches(groups[start], groups[stop - 1] + 1, wanted[stop - 1].row), wanted[start:stop]
                )
                start = stop

    def _batches(self, start: int, stop: int, last: int) -> Generator[pa.RecordBatch, None, None]:
        """Read row groups of the unit, from number `start` up to row `last`.

        Raises:
            ShardError: if they cannot be read.
        """
        first = self._unit.start
        some = dataclasses.replace(self._unit, start=first + start, stop=first + stop, first_row=self._firsts[start])
        limited = dataclasses.replace(self._options, limit=last + 1 - some.first_row)
        return read_unit(some, limited, _BATCH, Counter(), "")


def _look_at(shard: str, options: ReaderOptions) -> ParquetFiles:
    """Find the pictures of a Parquet file as planning does.

    Raises:
        ShardError: if it is gone or not readable.
    """
    files = storage.infos_of([shard])
    if not files:
        raise ShardError(GONE, f"{shard} is gone since it was embedded")
    found = sort_parquet(files, files, options)
    for _, error in found.broken:
        raise ShardError("unreadable", str(error))
    for file, schema in (*found.listings, *found.others):
        # Its pictures were recognised by those of another file of the input.
        if len(places := places_of_pictures(schema)) == 1:
            found = sort_parquet(files, files, dataclasses.replace(options, image_column=places[0]))
            found.recognised[file.uri] = places[0]
    return found
