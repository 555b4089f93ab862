"""Stream the members of a tar. Damage ends the tar with one error and never hangs, whatever the bytes are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Literal

from clip_transforms import storage
from clip_transforms.shards.batches import Readable, read_reject
from clip_transforms.shards.lines import ZSTD, open_zstd
from clip_transforms.shards.unit import ShardError, shard_error

if TYPE_CHECKING:
    from typing_extensions import Self

# Errors that damaged bytes cause; `tarfile` and the decompressors let many kinds through.
DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,  # from a thousand headers that each announce another
)


_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Readable]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    ZSTD: open_zstd,
}
_MAX_HEADER_BYTES = 1 << 20  # size of a long name or a pax header, which `tarfile` reads whole
_MAX_SIZE = 1 << 63  # bytes of a member; no real file is as large
_MAX_READS_AT_END = 100  # some loops of `tarfile` keep reading at the end


class Member:
    """A member of a tar.

    Attributes:
        name: name in the tar; it is a key, never a path.
        size: bytes, as its header says.
        place: the byte at which its headers begin, and the number of bytes to the end of its data.
        global_headers: what pax headers say of all members from here on.
        problem: the reason why this member cannot be read although the tar can; None if it can be read.
    """

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo):
        """Read nothing yet."""
        self._tar, self._info = tar, info
        self.name, self.size = info.name, info.size
        self.place = info.offset, tar.offset - info.offset
        self.global_headers = tar.pax_headers
        self.problem = None if info.isfile() else "a link or no file; links are not followed"
        if not info.isfile():
            self.size = 0
        self._start = b""
        self._file: IO[bytes] | None = None

    def start(self, size: int) -> bytes:
        """Read its first bytes; `read` then gives all bytes all the same.

        Raises:
            ShardError: if the tar ends or is damaged inside the member.
        """
        self._start = self._read(size)
        return self._start

    def read(self) -> bytes:
        """Read its bytes; call this before the next member is taken.

        Raises:
            ShardError: if the tar ends or is damaged inside the member.
        """
        return self._start + self._read(-1)

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._tar.extractfile(self._info)
            if self._file is None:
                raise ValueError(self.problem)
            return self._file.read(size)
        except DAMAGE as error:
            if storage.is_of_the_machine(error):
                raise
            raise _damaged(f"{self.name[:200]!r}", self._info.offset_data, error) from error

    def lost(self) -> dict[str, Any]:
        """Return the reject to use if this member offers a modality and cannot be read."""
        problem = self.problem or "the shard ends or is damaged in it"
        return read_reject("unreadable", f"{self.name[:200]!r}: {problem}", None)


def read_members(uri: str) -> Generator[Member, None, None]:
    """Yield the members in order, without folders.

    Raises:
        ShardError: if the tar is damaged or ends without its end mark; after the members before that.
    """
    try:
        with storage.open_input(uri) as file:
            yield from _members(_TarBytes(decompressed(file)), "r|")
    except OSError as error:
        raise shard_error(uri, error) from error


def members_from(file: IO[bytes], start: int = 0, global_headers: Mapping[str, str] | None = None) -> Iterator[Member]:
    """Yield the members of a plain tar from a place on, as `read_members` does; nothing is read but headers.

    Args:
        file: the tar; it can seek.
        start: where the headers of a member begin, as `Member.place` says.
        global_headers: those of that member.
    Raises:
        ShardError: if the tar is damaged or ends without its end mark; after the members before that.
    """
    file.seek(start)
    yield from _members(_TarBytes(file), "r:", dict(global_headers or {}))


def is_compressed(file: IO[bytes]) -> bool:
    """Return whether the first bytes of a file are those of a compressed one."""
    return _opener(file) is not None


def _members(
    tar_bytes: _TarBytes, mode: Literal["r|", "r:"], global_headers: dict[str, str] | None = None
) -> Iterator[Member]:
    tar = None
    try:
        tar = tarfile.open(  # type: ignore[call-overload]  # the stubs know neither mode with headers
            fileobj=tar_bytes, mode=mode, tarinfo=_StrictTarInfo, encoding="utf-8", pax_headers=global_headers
        )
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else a tar's headers pile up in memory
            if not 0 <= info.size < _MAX_SIZE:  # a pax header may override the size in the header
                raise ShardError("unreadable", f"a member of {info.size:,} bytes at byte {info.offset:,}")
            if not info.isdir():
                yield Member(tar, info)
        while rest := tar.fileobj.read(1 << 20):
            if rest.strip(b"\0"):  # two concatenated tars: `tarfile` stops at the end mark of the first
                raise ShardError("unreadable", f"something follows the end mark at byte {tar.offset:,}")
    except DAMAGE as error:
        if storage.is_of_the_machine(error):
            raise
        raise _damaged("the tar", tar.offset if tar else 0, error) from error


def _damaged(what: str, offset: int, error: Exception) -> ShardError:
    return ShardError("unreadable", f"{what} is damaged behind byte {offset:,}: {type(error).__name__}: {error}")


class _StrictTarInfo(tarfile.TarInfo):
    """Raise an error at a malformed header; `tarfile` would silently end the tar there."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except _NO_HEADER as error:
            raise ShardError(
                "unreadable", f"{error} at byte {tar.offset:,}, where a tar header or end belongs"
            ) from error

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADER_TYPES and self.size > _MAX_HEADER_BYTES):
            what = "a header" if self.type in _HEADER_TYPES else "a member"
            raise ShardError("unreadable", f"{what} of {self.size:,} bytes at byte {tar.offset:,}")
        return super()._proc_member(tar)  # type: ignore[misc]  # private, so not in the stubs


_NO_HEADER = (
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]  # not in the stubs, nor are the next two
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
)
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _TarBytes(io.RawIOBase):
    """The bytes that `tarfile` reads. Reading on and on at the end is an error, so that its loops end."""

    def __init__(self, file: Any):
        super().__init__()
        self._file = file
        self._reads_at_end = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        if not data:
            self._reads_at_end += 1
            if self._reads_at_end > _MAX_READS_AT_END:
                raise EOFError("it ends there")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def decompressed(file: IO[bytes]) -> Readable:
    """Decompress the file if its first bytes say so; its name does not matter."""
    opener = _opener(file)
    return file if opener is None else opener(file)


def _opener(file: IO[bytes]) -> Callable[[IO[bytes]], Readable] | None:
    start = file.read(6)
    file.seek(0)
    return next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
