"""Stream the members of a tar. Damage ends the tar with one error and never hangs, whatever the bytes are."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from clip_transforms import storage
from clip_transforms.shards.batches import read_reject
from clip_transforms.shards.tar_bytes import ForwardBytes, SeekableBytes, decompressed
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


_MAX_HEADER_BYTES = 1 << 20  # size of a long name or a pax header, which `tarfile` reads whole
_MAX_SIZE = 1 << 63  # bytes of a member; no real file is as large
_NUL = b"\0"
# A header from its numbers on, as GNU's and Python's programs and most others write it for a file: mode, two owners,
# size, time, checksum, type; and behind some names the numbers of a device.
_NUMBERS = 100
_PLAIN = re.compile(
    rb"(?:[0-7]{7}[\0 ]){3}(?:[0-7]{11}[\0 ]){2}[0-7]{6}\0 0.{172}(?:\0{16}|[0-7]{7}\0[0-7]{7}\0).{167}", re.DOTALL
).fullmatch


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
        self._left = self.size
        self._file: IO[bytes] | None = None  # of a sparse member, whose bytes lie in pieces

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
            if self.problem is not None:
                raise ValueError(self.problem)
            if self._info.sparse is not None:
                self._file = self._file or self._tar.extractfile(self._info)
                assert self._file is not None
                return self._file.read(size)
            wanted = self._left if size < 0 else min(size, self._left)
            file = cast(IO[bytes], self._tar.fileobj)
            file.seek(self._info.offset_data + self.size - self._left)
            data = file.read(wanted)
            if len(data) != wanted:
                raise tarfile.ReadError("unexpected end of data")
            self._left -= wanted
            return data
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
            yield from _members(ForwardBytes(decompressed(file)))
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
    yield from _members(SeekableBytes(file), dict(global_headers or {}))


def _members(tar_bytes: SeekableBytes | ForwardBytes, global_headers: dict[str, str] | None = None) -> Iterator[Member]:
    tar = None
    try:
        tar = tarfile.open(  # type: ignore[call-overload]  # the stubs do not know it with headers
            fileobj=tar_bytes, mode="r:", tarinfo=_StrictTarInfo, encoding="utf-8", pax_headers=global_headers
        )
        while (info := _next(tar, tar_bytes)) is not None:
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


def _next(tar: tarfile.TarFile, tar_bytes: SeekableBytes | ForwardBytes) -> tarfile.TarInfo | None:
    """Return the next member; one whose header is plain, as nearly all are, without the work of `tarfile` for any."""
    if tar.offset and tar.firstmember is None and not tar.pax_headers:  # type: ignore[attr-defined]
        offset = tar.offset
        tar_bytes.seek(offset)
        data = tar_bytes.read(tarfile.BLOCKSIZE)
        whole = len(data) == tarfile.BLOCKSIZE
        if whole and (info := _StrictTarInfo.of_plain(data, tar.encoding, tar.errors)):
            info.offset, info.offset_data = offset, offset + tarfile.BLOCKSIZE
            tar.offset = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            return info
        tar_bytes.unread(data)
    return tar.next()


def _damaged(what: str, offset: int, error: Exception) -> ShardError:
    return ShardError("unreadable", f"{what} is damaged behind byte {offset:,}: {type(error).__name__}: {error}")


class _StrictTarInfo(tarfile.TarInfo):
    """Raise an error at a malformed header; `tarfile` would silently end the tar there."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header."""
        return cls.of_plain(buf, encoding, errors) or super().frombuf(buf, encoding, errors)

    @classmethod
    def of_plain(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self | None:
        """Parse a header that is plain; None for any other, which is left to `tarfile`."""
        if not _PLAIN(buf, _NUMBERS) or sum(buf) - sum(buf[148:156]) + 8 * 32 != int(buf[148:154], 8):
            return None
        info = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        info.size, info.chksum = int(buf[124:135], 8), int(buf[148:154], 8)
        if buf[345]:
            info.name = f"{buf[345:500].partition(_NUL)[0].decode(encoding, errors)}/{info.name}"
        return info

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
