"""Cut listings into units of rows, which a side file keeps. Rows that are appended later change no earlier unit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms.shards.listing_format import ListingFormat
from clip_transforms.shards.records import Record, read_records
from clip_transforms.shards.unit import PlanError, Unit, part_name

ROWS_PER_UNIT = 10_000  # a constant, not a flag: a change would cut every dataset anew
# The side file of a listing; see `records.Record`.
ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.binary()),
        ("problem", pa.string()),
        ("short", pa.bool_()),
        ("merged", pa.bool_()),
    ]
)
OFFERS = b"offers"  # key in its footer; the value names the modalities that the listing has columns for
_BYTES_PER_GROUP = 32 << 20  # rows are held, written and read in pieces of about this size


class ListingSideFile:
    """The side file of a listing.

    The listing is read twice: once to cut it into units, and once to write the rows of the units that are pending.
    """

    def __init__(self, uri: str, form: ListingFormat, name: str, offers: Sequence[str]):
        """Read nothing yet.

        Args:
            uri: URI of the listing.
            form: how it is written.
            name: name of the side file.
            offers: the modalities that the listing has columns for.
        """
        self._uri, self._form, self._name = uri, form, name
        self.schema = ROWS.with_metadata({OFFERS: " ".join(offers)})
        self.units: list[Unit] = []
        self.damaged = False  # whether the listing could not be read to its end

    def cut(self) -> list[Unit]:
        """Return units of ROWS_PER_UNIT rows; the stamp of each is a hash of its rows."""
        groups = 0
        for place, pieces in itertools.groupby(self._pieces(), key=lambda piece: piece[0]):
            digest, start, num_bytes = hashlib.sha256(), groups, 0
            for _, records in pieces:
                num_bytes += _add(digest, records)
                self.damaged |= bool(records) and records[-1].text is None
                groups += 1
            first = place * ROWS_PER_UNIT
            part = part_name(self._uri, f"rows {first}")
            stamp = digest.hexdigest()[:32]
            self.units.append(Unit(self._uri, self._name, "listing", start, groups, first, stamp, num_bytes, part))
        return self.units

    def tables(self, wanted: Container[str]) -> Iterator[pa.Table]:
        """Yield one table per row group; the tables of units that are not wanted are empty.

        Args:
            wanted: names of the parts whose units are wanted.
        Raises:
            PlanError: if the listing has changed since it was cut.
        """
        pieces = self._pieces()
        for unit in self.units:
            digest = hashlib.sha256()
            for _, records in itertools.islice(pieces, unit.stop - unit.start):
                _add(digest, records)
                columns = zip(*records, strict=True) if records and unit.part in wanted else [[]] * len(ROWS)
                yield pa.table([pa.array(c, f.type) for c, f in zip(columns, ROWS, strict=True)], schema=self.schema)
            if digest.hexdigest()[:32] != unit.stamp:
                raise PlanError(f"{self._uri} was changed while the run was planned; run the same command again")

    def _pieces(self) -> Iterator[tuple[int, list[Record]]]:
        """Yield (number of the unit, some of its rows) in pieces of about _BYTES_PER_GROUP; at least one piece."""
        piece: list[Record] = []
        place = num_bytes = 0
        for record in read_records(self._uri, self._form):
            # The record that ends a damaged listing belongs to the last unit.
            here = record.row // ROWS_PER_UNIT if record.text is not None else place
            if piece and (here != place or num_bytes >= _BYTES_PER_GROUP):
                yield place, piece
                piece, num_bytes = [], 0
            place = here
            piece.append(record)
            num_bytes += len(record.text or b"")
        if piece or not place:
            yield place, piece


def _add(digest: Any, records: Sequence[Record]) -> int:
    """Put rows into a hash; return the number of bytes in them."""
    num_bytes = 0
    for record in records:
        text = record.text or b""
        digest.update(f"{record.row} {len(text)} {record.problem} {record.short};".encode(errors="replace") + text)
        num_bytes += len(text)
    return num_bytes
