"""Read pictures of a finished dataset again from their sources, by (`shard`, `row`), and check that they are the same.

All that is needed is in the dataset: the name of a part tells how its shard was cut, and `image_sha256` whether a
picture is still the one that was embedded. So a shard may have been touched, copied back or added to, and the pictures
that did not change are read all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms import storage
from clip_transforms.shards.cut import cut_parquet
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.listings_again import is_of_listing, listing_batches
from clip_transforms.shards.parquet_columns import places_of_pictures
from clip_transforms.shards.parquet_files import ParquetFiles, sort_parquet
from clip_transforms.shards.pictures_again import read_files
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions, ShardError, Unit, part_name
from clip_transforms.shards.wanted import CHANGED, GONE, Picture, Wanted, checked

_BATCH = 256  # rows; a batch ends earlier where pictures are large


def read_again(
    part: str, shard: str, wanted: Sequence[Wanted], options: ReaderOptions, folder: str = ""
) -> Iterator[Picture]:
    """Read pictures of one part again; the shard is read once, in order, and no further than needed.

    Args:
        part: name of the part.
        shard: URI of its shard, from its footer.
        wanted: the rows, sorted; all of them have an `image_sha256`.
        options: the readers' options that the dataset was made with. `allow_uri` is the only one that is not stored in
            a dataset: whoever reads decides where the URIs of a listing may point to.
        folder: URI of the folder in which `write_listings` left the rows of listings; without it a listing is read from
            its beginning.
    Yields:
        A Picture for each wanted row, in their order; its image is the very one that was embedded.
    """
    if not wanted:
        return
    if part == part_name(shard, shard):
        yield from read_files(shard, wanted, options)
        return
    options = dataclasses.replace(options, columns=(), limit=0)
    if is_of_listing(part, shard, wanted[0].row):
        batches = listing_batches(part, shard, [one.row for one in wanted], options, folder)
    else:
        batches = _shard_batches(part, shard, wanted[-1].row, options)
    with contextlib.closing(batches):
        yield from _in_order(_pictures(batches), wanted)


def _in_order(found: Iterator[Picture], wanted: Sequence[Wanted]) -> Iterator[Picture]:
    """Yield one Picture for each wanted row; what was read of other rows is passed over."""
    left, reason = list(reversed(wanted)), CHANGED
    try:
        for picture in found:
            while left and left[-1].row < picture.row:  # the shard has no such row any more
                yield Picture(left.pop().row, None, reason)
            if left and left[-1].row == picture.row:
                yield checked(picture, left.pop())
            if not left:
                return
    except ShardError as error:
        reason = error.reason
    while left:
        yield Picture(left.pop().row, None, reason)


def _pictures(batches: Iterator[pa.RecordBatch]) -> Iterator[Picture]:
    """Yield the pictures of batches of `schemas.samples`."""
    for batch in batches:
        reasons = pc.struct_field(batch.column("image_reject"), "reason").to_pylist()
        images = batch.column("image")
        for place, row in enumerate(batch.column("row").to_pylist()):
            yield Picture(row, images[place].as_py(), reasons[place] or "")


def _shard_batches(part: str, shard: str, last: int, options: ReaderOptions) -> Generator[pa.RecordBatch, None, None]:
    """Read a tar, a TFRecord or a piece of a Parquet file up to row `last`.

    Raises:
        ShardError: if it is gone or cannot be read to its end.
    """
    unit = _unit(part, shard, options)
    some = dataclasses.replace(options, limit=max(1, last + 1 - unit.first_row))
    yield from read_unit(unit, some, _BATCH, Counter(), "")


def _unit(part: str, shard: str, options: ReaderOptions) -> Unit:
    """Make the unit of a part again.

    Raises:
        ShardError: if the shard is gone, or cut in another way now.
    """
    if part == part_name(shard):
        format_ = "tfrecord" if kind_of(shard) == "tfrecord" else "webdataset"
        return Unit(shard, shard, format_, 0, 0, 0, "", 0, part)
    found = _look_at_parquet(shard, dataclasses.replace(options, input_format="parquet"))
    for file, metadata in found.images:
        for unit in cut_parquet(file, metadata, found.recognised.get(file.uri, "")):
            if unit.part == part:
                return unit
    raise ShardError(CHANGED, f"{shard} is cut in another way than when it was embedded")


def _look_at_parquet(shard: str, options: ReaderOptions) -> ParquetFiles:
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
