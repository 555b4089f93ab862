"""Read pictures of a finished dataset again from their sources, by (`shard`, `row`), and check that they are the same.

All that is needed is in the dataset: the name of a part tells how its shard was cut, and `image_sha256` whether a
picture is still the one that was embedded. So a shard may have been touched, copied back or added to, and the pictures
that did not change are read all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from clip_transforms import storage
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.listings_again import ListingUnit, is_of_listing, write_listings
from clip_transforms.shards.parquet_again import ParquetUnit
from clip_transforms.shards.pictures_again import read_files
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.tar_bytes import is_compressed
from clip_transforms.shards.tar_index import TarIndex
from clip_transforms.shards.unit import ReaderOptions, ShardError, Unit, part_name, shard_error
from clip_transforms.shards.wanted import Picture, Wanted, in_order

if TYPE_CHECKING:
    from typing_extensions import Self

_BATCH = 256  # rows; a batch ends earlier where pictures are large
_MOST_SOURCES = 1_000  # parts that are remembered
_MOST_ROWS = 4 << 20  # rows whose places are remembered, sixteen bytes each


def read_again(
    part: str, shard: str, wanted: Sequence[Wanted], options: ReaderOptions, listings: str = ""
) -> Iterator[Picture]:
    """Read pictures of one part again, as `Sources.pictures` does, and remember nothing."""
    with Sources(options, listings) as sources:
        yield from sources.pictures(part, shard, wanted)


class Sources:
    """The sources of a dataset, open for as long as somebody asks for its pictures. Threads may share it.

    No file stays open between two calls. It remembers what it took time to find: where the pictures of a plain tar
    lie (made at the first use, as far as it was needed), how a Parquet file is cut, and the rows of a listing, in a
    temporary folder. A tar that is compressed and a TFRecord have no such places; they are read from the beginning up
    to the row.
    """

    def __init__(self, options: ReaderOptions, listings: str = "", cache: str = ""):
        """Open nothing yet.

        Args:
            options: the readers' options that the dataset was made with. `allow_uri` is the only one that is not stored
                in a dataset: whoever reads decides where the URIs of a listing may point to.
            listings: URI of the folder in which `write_listings` left the rows of all listings; without it they are
                written into a temporary folder, each at its first use.
            cache: path of a folder of this machine that keeps where the pictures of tars on other machines lie; to find
                that out, such a tar is downloaded. Without it that is done again after each start, and row by row.
        """
        self._options = dataclasses.replace(options, columns=(), limit=0)
        self._listings, self._cache = listings, cache
        self._lock, self._listing_lock = threading.Lock(), threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()  # part → source; the latest used one comes last
        self._scratch = ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Forget all, and remove the temporary folder. Nobody may read meanwhile."""
        self._known.clear()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""

    def picture(self, part: str, shard: str, wanted: Wanted) -> Picture:
        """Read one picture, as `pictures` does. If its source has changed since it was opened, it is opened anew."""
        before = self._known.get(part)
        (found,) = self.pictures(part, shard, [wanted])
        if found.lost and self._has_another(part, shard, before):
            (found,) = self.pictures(part, shard, [wanted])
        return found

    def pictures(self, part: str, shard: str, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Read pictures of one part; its source is read in order, and no further than needed.

        Args:
            part: name of the part.
            shard: URI of its shard, from its footer.
            wanted: the rows, sorted; all of them have an `image_sha256`.
        Yields:
            A Picture for each wanted row, in their order; its image is the very one that was embedded.
        """
        if not wanted:
            return
        if part == part_name(shard, shard):
            yield from read_files(shard, wanted, self._options)
            return
        try:
            source = self._source(part, shard, wanted[0].row)
        except ShardError as error:
            yield from (Picture(one.row, None, error.reason) for one in wanted)
            return
        yield from source.read(wanted)

    def _source(self, part: str, shard: str, row: int) -> _Source:
        """Return the source of a part, of which any row is given.

        Raises:
            ShardError: if it cannot be opened.
        """
        with self._lock:
            known = self._known.setdefault(part, _Known())
            self._known.move_to_end(part)
            rows = sum(one.num_rows for one in self._known.values())
            while len(self._known) > _MOST_SOURCES or (rows > _MOST_ROWS and len(self._known) > 1):
                rows -= self._known.popitem(last=False)[1].num_rows
        with known.lock:  # one thread opens it, and others wait
            if known.source is None:
                known.stamp = _stamp(shard)
                known.source = self._open(part, shard, row, known.stamp)
            return known.source

    def _has_another(self, part: str, shard: str, before: _Known | None) -> bool:
        """Return whether the source of a part is not the one any more that was opened; it is then forgotten.

        Args:
            part: name of the part.
            shard: URI of its shard.
            before: what was known of the source before it was read; None if nothing was.
        """
        known = self._known.get(part)
        if before is not None and known is not before:
            return True  # another thread has found it out meanwhile
        if known is None or known.source is None or known.stamp == _stamp(shard):
            return False
        with self._lock:
            if self._known.get(part) is known:  # else another thread has forgotten it already
                del self._known[part]
        return True

    def _open(self, part: str, shard: str, row: int, stamp: str) -> _Source:
        if part == part_name(shard):
            return _open_stream(part, shard, self._options, self._index_file(shard, stamp))
        if not is_of_listing(part, shard, row):
            return ParquetUnit(part, shard, self._options)
        return ListingUnit(part, shard, self._options, self._listings or self._write_listing(shard))

    def _index_file(self, shard: str, stamp: str) -> str:
        """Return the path of the file that keeps the index of a tar; empty if there is none."""
        if not self._cache or storage.is_local(shard):
            return ""
        depends_on = repr((shard, stamp, self._options.image_extension, self._options.max_image_bytes))
        return os.path.join(self._cache, f"{hashlib.sha256(depends_on.encode()).hexdigest()[:32]}.npz")

    def _write_listing(self, shard: str) -> str:
        """Write the rows of a listing into the temporary folder, unless they are there; return the folder of them."""
        with self._listing_lock:
            self._scratch = self._scratch or tempfile.mkdtemp(prefix="clip-transforms-")
            name = hashlib.sha256(f"{shard} {_stamp(shard)}".encode()).hexdigest()[:16]
            folder = os.path.join(self._scratch, name)
            if not os.path.exists(folder):
                os.mkdir(folder)
                write_listings({part_name(shard, "rows 0"): shard}, self._options, folder)
            return folder


class _Source(Protocol):
    """The source of a part that was opened."""

    def read(self, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Yield a Picture for each wanted row; these are sorted."""


class _Known:
    """What is known of the source of a part: the stamp of its shard when it was opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.source: _Source | None = None
        self.stamp = ""

    @property
    def num_rows(self) -> int:
        return self.source.num_rows if isinstance(self.source, TarIndex) else 0


@dataclasses.dataclass(frozen=True)
class _Stream:
    """A shard that can only be read from its beginning."""

    unit: Unit
    options: ReaderOptions

    def read(self, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Read up to the last wanted row."""
        some = dataclasses.replace(self.options, limit=wanted[-1].row + 1)
        return in_order(read_unit(self.unit, some, _BATCH, Counter(), ""), wanted)


def _open_stream(part: str, shard: str, options: ReaderOptions, index_file: str) -> _Source:
    """Open a tar or a TFRecord.

    Raises:
        ShardError: if it is gone, or cannot be read.
    """
    if kind_of(shard) == "tfrecord":
        return _Stream(Unit(shard, shard, "tfrecord", 0, 0, 0, "", 0, part), options)
    try:
        with storage.open_input(shard) as file:
            if not is_compressed(file):
                return TarIndex(shard, options, index_file)
    except OSError as error:
        raise shard_error(shard, error) from error
    return _Stream(Unit(shard, shard, "webdataset", 0, 0, 0, "", 0, part), options)


def _stamp(shard: str) -> str:
    return next((info.stamp for info in storage.infos_of([shard])), "")
