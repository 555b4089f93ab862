"""Read the record batches of a unit, whatever its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.folder import read_folder
from clip_transforms.shards.listing import read_listing
from clip_transforms.shards.parquet import read_parquet
from clip_transforms.shards.tfrecord import read_tfrecord
from clip_transforms.shards.unit import UNLISTED, ReaderOptions, ShardError, Unit, shard_error
from clip_transforms.shards.webdataset import read_webdataset


def read_unit(
    unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter, plan_folder: str
) -> Generator[pa.RecordBatch, None, None]:
    """Read the samples of a unit, in the order of the source.

    Args:
        unit: a unit of the plan.
        options: settings of the reader; `options.limit` ends the unit early.
        batch_size: maximum number of rows in a batch. Batches never span units.
        notes: counter for oddities that the user should know of.
        plan_folder: URI of the folder that holds the plan and the side files of folders and listings.
    Yields:
        Batches of `schemas.samples`.
    Raises:
        ShardError: after all samples that could be read, if the shard could not be read to its end.
    """
    if options.limit:
        batch_size = min(
            batch_size, options.limit
        )  # otherwise samples beyond the limit would be read, and their oddities counted
    if unit.format == "webdataset":
        batches = read_webdataset(unit, options, batch_size, notes)
    elif unit.format == "tfrecord":
        batches = read_tfrecord(unit, options, batch_size, notes)
    elif unit.format == UNLISTED:
        raise _unlisted(unit.uri)
    elif unit.format == "parquet":
        batches = read_parquet(unit, options, batch_size, notes)
    elif unit.format == "listing":
        batches = read_listing(unit, options, batch_size, notes, plan_folder)
    else:
        batches = read_folder(unit, options, batch_size, notes, plan_folder)
    left = options.limit or None
    for batch in batches:
        if left is not None:
            batch = batch.slice(0, left)
            left -= batch.num_rows
        yield batch
        if left == 0:
            return


def _unlisted(uri: str) -> ShardError:
    """Return the error of a folder that could not be listed when the run was planned."""
    try:
        storage.names_in(uri)
    except OSError as error:
        return shard_error(uri, error)
    return ShardError("unreadable", "it could not be listed when the run was planned, but now it can; run again")
