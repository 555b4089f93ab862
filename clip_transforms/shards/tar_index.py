"""Where the pictures of a plain tar lie, row by row: one of them is read without those before it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Container, Generator, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from clip_transforms import storage
from clip_transforms.shards.tar import Member, members_from
from clip_transforms.shards.tar_samples import ImageChoice, keyed_members
from clip_transforms.shards.unit import ReaderOptions, ShardError, shard_error
from clip_transforms.shards.wanted import CHANGED, Picture, Wanted, checked

_LOGGER = logging.getLogger(__name__)
_AHEAD = 8 << 20  # bytes
_NONE = -1  # stands for the place of a row without a picture


class _Found(NamedTuple):
    """A member that is the picture of a sample: its place, and its bytes if they are wanted."""

    start: int
    size: int
    image: bytes | None


class TarIndex:
    """An index of a tar that is not compressed. Threads may share it.

    It grows as far as it is asked, by the headers of the members, and takes sixteen bytes a row.

    Attributes:
        next: the byte at which the sample behind the last known row begins.
    """

    def __init__(self, uri: str, options: ReaderOptions, file: str = ""):
        """Read nothing of the tar yet.

        Args:
            uri: URI of the tar.
            options: how its members form samples.
            file: path of the file that keeps the index, named after all that it depends on; empty for none. With it,
                the index grows by some megabytes at a time.
        """
        self._uri, self._options = uri, options
        self._lock = threading.Lock()
        self._starts, self._sizes = array("q"), array("q")
        self.next = 0
        self._headers: dict[str, str] = {}  # pax headers that hold at `next`
        self._is_whole = False  # whether the last row is the tar's last
        self._file = file
        self._kept = 0  # number of rows in the file
        if file:
            self._load()

    @property
    def num_rows(self) -> int:
        """Return the number of rows that it knows."""
        return len(self._starts)

    def read(self, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Read some pictures, sorted by row. The caller may take its time with each: no lock is held meanwhile.

        Yields:
            A Picture for each of them, as `wanted.checked` returns it.
        """
        lost = ""  # why no further row can be found
        walk = _Walk(self, {one.row for one in wanted})
        try:
            for one in wanted:
                try:
                    found = None
                    if not lost:
                        with self._lock:
                            found = walk.to(one.row) if one.row >= len(self._starts) else None
                    if found is None and one.row < len(self._starts):
                        found = self._read(one.row)
                    found = found or Picture(one.row, None, lost or CHANGED)
                except ShardError as error:
                    lost = error.reason
                    found = Picture(one.row, None, lost)
                yield checked(found, one)
            if self._file:
                with self._lock:
                    walk.ahead()
        finally:
            walk.close()
            self._keep()

    def _load(self) -> None:
        try:
            with np.load(self._file, allow_pickle=False) as found:
                rest = json.loads(found["rest"].tobytes())
                self._starts, self._sizes = (array("q", found[name].tobytes()) for name in ("starts", "sizes"))
            self.next, self._headers, self._is_whole = rest["next"], rest["headers"], rest["is_whole"]
            self._kept = len(self._starts)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            _LOGGER.warning("%s cannot be read and is made anew: %s", self._file, error)

    def _keep(self) -> None:
        """Write the file anew if rows were added. A place that cannot be written costs no picture."""
        with self._lock:
            if not self._file or len(self._starts) == self._kept:
                return
            self._kept = len(self._starts)
            rest = {"next": self.next, "headers": self._headers, "is_whole": self._is_whole}
            as_bytes, buffer = np.frombuffer(json.dumps(rest).encode(), np.uint8), io.BytesIO()
            np.savez_compressed(buffer, rest=as_bytes, starts=np.array(self._starts), sizes=np.array(self._sizes))
            folder = os.path.dirname(self._file)
            try:
                storage.make_folder(folder)
                storage.write_bytes(self._file, buffer.getvalue(), folder)
            except OSError as error:
                _LOGGER.warning("%s cannot be written: %s", self._file, error)

    def _read(self, row: int) -> Picture:
        """Read a picture whose place is known.

        Raises:
            ShardError: if the tar cannot be read.
        """
        start, size = self._starts[row], self._sizes[row]
        if start == _NONE:
            return Picture(row, None)
        try:
            data = storage.read_bytes(self._uri, size, start)
        except OSError as error:
            raise shard_error(self._uri, error) from error
        try:
            member = next(members_from(io.BytesIO(data), 0, self._headers), None)
            return Picture(row, member.read() if member else None)
        except ShardError:  # no such member begins there any more
            return Picture(row, None)

    def rows(self, wanted: Container[int]) -> Generator[Picture, None, None]:
        """Add row after row behind those that are known; yield each, with its picture if that is wanted.

        Raises:
            ShardError: if the tar cannot be read further; after the rows before that.
        """
        row, choice = len(self._starts), None

        def take(member: Member) -> _Found:
            return _Found(*member.place, member.read() if row in wanted else None)

        try:
            with storage.open_input(self._uri) as file:
                for place, _, extension, member in self._members(file):
                    if choice is None or place > row:
                        if choice is not None:
                            yield self._add(row, _found(choice), member)
                        row, choice = place, ImageChoice(self._options, take)
                    choice.add(extension, member)
            if choice is not None:
                yield self._add(row, _found(choice), None)
        except ShardError:
            if choice is not None and (image := _found(choice).image) is not None:
                yield Picture(row, image)  # it was whole before the damage, but the sample may not be
            raise
        except OSError as error:
            raise shard_error(self._uri, error) from error

    def _members(self, file: IO[bytes]) -> Iterator[tuple[int, str, str, Member]]:
        """Yield the keyed members behind the rows that are known."""
        if not self._is_whole:
            yield from keyed_members(members_from(file, self.next, self._headers), Counter(), len(self._starts))

    def _add(self, row: int, found: _Found, following: Member | None) -> Picture:
        """Add a row, given the first member of the one behind it."""
        self._sizes.append(found.size)
        self._starts.append(found.start)  # last: it tells other threads that the row is there
        if following is None:
            self._is_whole = True
        else:
            self.next, self._headers = following.place[0], dict(following.global_headers)
        return Picture(row, found.image)


def _found(choice: ImageChoice) -> _Found:
    return choice.chosen()[0].image("").get("image") or _Found(_NONE, 0, None)


class _Walk:
    """A walk through a tar that fills its index, as far as one caller of `TarIndex.read` needs. It keeps its place."""

    def __init__(self, index: TarIndex, wanted: Container[int]):
        self._index, self._wanted = index, wanted
        self._rows: Generator[Picture, None, None] | None = None
        self._at = 0  # the row that it comes to next

    def to(self, row: int) -> Picture | None:
        """Walk on to a row that the index lacks; None if the tar has no such row.

        Raises:
            ShardError: if the tar cannot be read so far.
        """
        if self._rows is None or self._at != self._index.num_rows:  # another thread has walked on
            self.close()
            self._rows = self._index.rows(self._wanted)
        for picture in self._rows:
            self._at = picture.row + 1
            if picture.row == row:
                return picture
        return None

    def ahead(self) -> None:
        """Walk on through the bytes that come with a request anyway, for callers who want the next rows."""
        if self._rows is None or self._at != self._index.num_rows:
            return
        stop = self._index.next + _AHEAD
        with contextlib.suppress(ShardError):  # whoever wants those rows meets it again
            for _ in self._rows:
                if self._index.next >= stop:
                    return

    def close(self) -> None:
        """Close the tar."""
        if self._rows is not None:
            self._rows.close()
