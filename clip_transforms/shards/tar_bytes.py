"""The bytes of a tar: decompressed, and read as a file that can go to any place, or only on."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from typing import IO

from clip_transforms.shards.batches import Readable
from clip_transforms.shards.lines import ZSTD, open_zstd

_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Readable]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    ZSTD: open_zstd,
}
_MAX_READS_AT_END = 100  # some loops of `tarfile` keep reading at the end
_BLOCK = 1 << 20


class _TarBytes:
    """The bytes that `tarfile` reads. Reading on and on at the end is an error, so that its loops end."""

    def __init__(self, file: Readable):
        self._file = file
        self._place = 0
        self._reads_at_end = 0

    def read(self, size: int) -> bytes:
        """Return bytes; fewer only at the end."""
        data = self._file.read(size)
        self._place += len(data)
        while len(data) < size and (more := self._file.read(size - len(data))):
            data, self._place = data + more, self._place + len(more)
        if not data and size:
            self._reads_at_end += 1
            if self._reads_at_end > _MAX_READS_AT_END:
                raise EOFError("it ends there")
        return data

    def tell(self) -> int:
        """Return how many bytes lie before the next one."""
        return self._place


class SeekableBytes(_TarBytes):
    """Those of a file that can go to any place."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self._seek, self._place = file.seek, file.tell()

    def seek(self, place: int) -> None:
        """Go to a place."""
        if place != self._place:
            self._place = self._seek(place)

    def unread(self, data: bytes) -> None:
        """Go back."""
        self.seek(self._place - len(data))


class ForwardBytes(_TarBytes):
    """Those of a stream: what lies before a place is read and forgotten."""

    _again = b""  # comes before the bytes of the file

    def read(self, size: int) -> bytes:
        """Return bytes; fewer only at the end."""
        if not self._again:
            return super().read(size)
        data, self._again = self._again[:size], self._again[size:]
        self._place += len(data)
        return data + super().read(size - len(data)) if len(data) < size else data

    def unread(self, data: bytes) -> None:
        """Keep them for the next time."""
        self._again, self._place = data + self._again, self._place - len(data)

    def seek(self, place: int) -> None:
        """Go to a place that was not passed."""
        if place < self._place:
            raise tarfile.StreamError("seeking backwards is not allowed")
        while place > self._place and self.read(min(place - self._place, _BLOCK)):
            pass


def is_compressed(file: IO[bytes]) -> bool:
    """Return whether the first bytes of a file are those of a compressed one."""
    return _opener(file) is not None


def decompressed(file: IO[bytes]) -> Readable:
    """Decompress the file if its first bytes say so; its name does not matter."""
    opener = _opener(file)
    return file if opener is None else opener(file)


def _opener(file: IO[bytes]) -> Callable[[IO[bytes]], Readable] | None:
    start = file.read(6)
    file.seek(0)
    return next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
