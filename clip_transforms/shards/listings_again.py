"""Read rows of listings again: only the wanted ones, so that no picture is fetched for the others."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.parquet_writer import ParquetWriter
from clip_transforms.shards.cut_listing import ROWS_PER_UNIT, ListingSideFile
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.listing import read_listing
from clip_transforms.shards.listing_plan import PlannedListing, plan_listing
from clip_transforms.shards.parquet_files import sort_parquet
from clip_transforms.shards.row_groups import open_parquet
from clip_transforms.shards.side_file import write_side_file
from clip_transforms.shards.unit import PlanError, ReaderOptions, ShardError, Unit, part_name
from clip_transforms.shards.wanted import CHANGED, GONE, Picture, Wanted, in_order

_BATCH = 256
_UNITS = "listings.json"  # in the folder of the side files: part → Unit


def is_of_listing(part: str, shard: str, row: int) -> bool:
    """Tell whether a part was made from a piece of a listing, by its name.

    Args:
        part: name of the part.
        shard: URI of its shard.
        row: any row of the part.
    """
    return part == part_name(shard, f"rows {row // ROWS_PER_UNIT * ROWS_PER_UNIT}")


def write_listings(shards: Mapping[str, str], options: ReaderOptions, folder: str) -> None:
    """Read each listing once, and write its rows into side files, so that no part need read it from its beginning.

    A listing that is gone or cannot be read has no side file; its parts say so when they are read.

    Args:
        shards: part → URI of its shard, of all parts of a dataset; those that are not of listings are passed over.
        options: the readers' options that the dataset was made with.
        folder: URI of the run's folder.
    """
    firsts = {part_name(shard, "rows 0"): shard for shard in shards.values()}
    units: dict[str, Unit] = {}
    for number, shard in enumerate(sorted(firsts[part] for part in firsts if part in shards)):
        try:
            listing = _plan(shard, options)
        except ShardError:
            continue
        name = f"again-{number}.parquet"
        side_file = ListingSideFile(shard, listing.form, name, listing.offers)
        units |= {unit.part: unit for unit in side_file.cut()}
        write_side_file(folder, name, side_file, units)
    content = json.dumps({part: dataclasses.asdict(unit) for part, unit in units.items()})
    storage.write_bytes(storage.join(folder, _UNITS), content.encode(), folder)


@dataclasses.dataclass(frozen=True)
class ListingUnit:
    """The piece of a listing that a part was made from.

    Attributes:
        part: name of the part.
        shard: URI of the listing.
        options: the readers' options.
        folder: URI of the folder of the side files.
    """

    part: str
    shard: str
    options: ReaderOptions
    folder: str

    def read(self, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Yield a Picture for each wanted row; these are sorted, and no other picture is fetched."""
        return in_order(self._batches([one.row for one in wanted]), wanted)

    def _batches(self, rows: Sequence[int]) -> Generator[pa.RecordBatch, None, None]:
        """Read some rows, and fetch their pictures: batches of `schemas.samples`.

        Raises:
            ShardError: if the listing is gone or cannot be read, or has no such rows any more.
        """
        unit = _units(self.folder).get(self.part)
        if unit is None:
            _plan(self.shard, self.options)  # raises the reason, if there is another
            raise ShardError(CHANGED, f"{self.shard} has fewer rows than when it was embedded")
        with storage.open_input(storage.join(self.folder, unit.uri)) as file, _scratch() as scratch:
            side_file, groups = open_parquet(file), 0
            with ParquetWriter(os.path.join(scratch, "rows.parquet"), side_file.schema_arrow) as writer:
                for batch in _some(side_file, range(unit.start, unit.stop), rows):
                    writer.write_batch(batch)
                    groups += 1
            some = Unit(self.shard, "rows.parquet", "listing", 0, groups, rows[0], "", 0, self.part)
            yield from read_listing(some, self.options, _BATCH, Counter(), scratch)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="clip-transforms-")


def _some(side_file: pq.ParquetFile, groups: Sequence[int], rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows of some row groups of a side file, up to the last."""
    wanted = pa.array(rows, pa.int64())
    for batch in side_file.iter_batches(_BATCH, list(groups), use_threads=False):
        here = batch.filter(pc.and_(pc.is_in(batch.column("row"), wanted), batch.column("text").is_valid()))
        if here.num_rows:
            yield here
        if batch.num_rows and batch.column("row")[-1].as_py() >= rows[-1]:
            return


@functools.lru_cache(maxsize=16)
def _units(folder: str) -> dict[str, Unit]:
    content = json.loads(storage.read_bytes(storage.join(folder, _UNITS)))
    return {part: Unit(**unit) for part, unit in content.items()}


def _plan(shard: str, options: ReaderOptions) -> PlannedListing:
    """Find out again how a listing is written.

    Raises:
        ShardError: if it is gone, or no listing any more.
    """
    files = storage.infos_of([shard])
    if not files:
        raise ShardError(GONE, f"{shard} is gone since it was embedded")
    options = dataclasses.replace(options, input_format="listing")
    schema = None
    if kind_of(shard) == "parquet":
        schema = next((schema for _, schema in sort_parquet(files, files, options).listings), None)
        if schema is None:
            raise ShardError(CHANGED, f"{shard} is no listing any more")
    try:
        return plan_listing(shard, schema, options)
    except PlanError as error:
        raise ShardError("unreadable", str(error)) from error
