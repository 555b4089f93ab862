"""Where the pictures of a plain tar lie, row by row: one of them is read without those before it."""

from __future__ import annotations

import io
import threading
from array import array
from collections import Counter
from collections.abc import Container, Generator, Iterator, Sequence
from typing import IO, NamedTuple

from clip_transforms import storage
from clip_transforms.shards.tar import Member, members_from
from clip_transforms.shards.tar_samples import ImageChoice, keyed_members
from clip_transforms.shards.unit import ReaderOptions, ShardError, shard_error
from clip_transforms.shards.wanted import CHANGED, Picture, Wanted, checked

_NONE = -1  # stands for the place of a row without a picture


class _Found(NamedTuple):
    """A member that is the picture of a sample: its place, and its bytes if they are wanted."""

    start: int
    size: int
    image: bytes | None


class TarIndex:
    """An index of a tar that is not compressed. Threads may share it.

    It grows as far as it is asked, by the headers of the members, and takes sixteen bytes a row.
    """

    def __init__(self, uri: str, options: ReaderOptions):
        """Read nothing yet.

        Args:
            uri: URI of the tar.
            options: how its members form samples.
        """
        self._uri, self._options = uri, options
        self._lock = threading.Lock()
        self._starts, self._sizes = array("q"), array("q")
        self._next = 0  # the byte at which the sample behind the last row begins
        self._headers: dict[str, str] = {}  # pax headers that hold there
        self._is_whole = False  # whether the last row is the tar's last

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
        finally:
            walk.close()

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
            yield from keyed_members(members_from(file, self._next, self._headers), Counter(), len(self._starts))

    def _add(self, row: int, found: _Found, following: Member | None) -> Picture:
        """Add a row, given the first member of the one behind it."""
        self._sizes.append(found.size)
        self._starts.append(found.start)  # last: it tells other threads that the row is there
        if following is None:
            self._is_whole = True
        else:
            self._next, self._headers = following.place[0], dict(following.global_headers)
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

    def close(self) -> None:
        """Close the tar."""
        if self._rows is not None:
            self._rows.close()
