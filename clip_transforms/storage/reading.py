"""Open and read files. A transfer that breaks off continues at the same byte."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.errors import FileChangedError
from clip_transforms.storage.location import filesystem, token_of
from clip_transforms.storage.retry import retried
from clip_transforms.storage.writing import open_output

# Size of one request. The default of s3fs is 50 MB for each open file.
_BLOCK_BYTES = 8 << 20
_SKIP_BYTES = 1 << 20


def open_input(uri: str) -> IO[bytes]:
    """Open a file for reading: a file on this machine as it is, any other as a `ResumingFile`.

    `read(n)` returns n bytes unless the file ends, whatever pieces the file system hands out; pyarrow relies on this.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")
    return cast(IO[bytes], ResumingFile(fs, path, uri))  # raw files of `io` are not declared as such


def read_bytes(uri: str, size: int | None = None, start: int = 0) -> bytes:
    """Read a whole small file, or `size` bytes of a file from byte `start` on."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
    if size is None:
        return retried(lambda: fs.cat_file(path, start=start or None), uri)
    return retried(lambda: fs.cat_file(path, start=start, end=start + size), uri)


def read_end(uri: str, size: int) -> tuple[bytes, int]:
    """Return the last `size` bytes of a file, or all if it has fewer, and the size of the whole file."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        with ResumingFile(fs, path, uri) as file:
            total = file.seek(0, os.SEEK_END)
            file.seek(max(0, total - size))
            return file.read(size), total
    handle = os.open(path, os.O_RDONLY)  # a buffered file takes twice as long, which counts for 100,000 parts
    try:
        total = os.fstat(handle).st_size
        place, end = max(0, total - size), b""
        while place < total and (block := os.pread(handle, total - place, place)):
            place, end = place + len(block), end + block
        return end, total
    finally:
        os.close(handle)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yield a path on this machine: the file itself, or a copy of it that is removed after the block."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    handle, local = tempfile.mkstemp(prefix="clip-transforms-")
    try:
        with open_output(local, handle) as copy, open_input(uri) as file:
            shutil.copyfileobj(file, copy, _BLOCK_BYTES)
        yield local
    finally:
        os.unlink(local)


def sha256(uri: str) -> str:
    """Return the hex SHA-256 of a file."""
    with open_input(uri) as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """Return the hex SHA-256 of an open file, from its current position to its end."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class ResumingFile(io.RawIOBase):
    """A readable file of any fsspec file system. If a transfer breaks off, the file is opened again at the same byte.

    `read(n)` returns n bytes unless the file ends, like a file on this machine.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, uri: str):
        """Open the file.

        Raises:
            OSError: if it cannot be opened; a transient failure is tried again first.
        """
        super().__init__()
        self._fs, self._path, self._uri = fs, path, uri
        self._place = 0
        self._file: Any = None
        self._version: tuple[int | None, str] | None = None
        retried(self._open, uri)

    def _open(self) -> None:
        """Open the file at the current place.

        Raises:
            FileChangedError: if it has changed since it was first opened.
        """
        if self._version is not None:
            self._fs.invalidate_cache(self._path)  # otherwise fsspec would return its old size and etag
        file = self._fs.open(self._path, "rb", block_size=_BLOCK_BYTES)
        try:
            info = getattr(file, "details", None) or {}
            info = info if token_of(info) else self._fs.info(self._path)
            version = (info.get("size"), token_of(info))
            if self._version not in (None, version):
                raise self._changed()
            self._version = version
            if self._place:
                self._go_to_place(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    def _go_to_place(self, file: Any) -> None:
        try:
            file.seek(self._place)
        except ValueError:  # the server does not support ranges
            left = self._place
            while left:
                skipped = len(file.read(min(left, _SKIP_BYTES)))
                if not skipped:
                    raise ConnectionError(f"{self._uri} ended before byte {self._place:,}") from None
                left -= skipped

    def _changed(self) -> FileChangedError:
        return FileChangedError(f"{self._uri} was changed while it was read; run again when nothing writes to it")

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all that are left.

        Raises:
            OSError: if it fails and trying again does not help.
        """
        if size is None or size < 0:
            return self.readall()
        blocks, left = [], size
        while left:
            block = retried(functools.partial(self._read_once, left), self._uri)
            if not block:
                break
            blocks.append(block)
            left -= len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def readall(self) -> bytes:
        """Read all bytes that are left."""
        blocks = []
        while block := self.read(_BLOCK_BYTES):
            blocks.append(block)
        return b"".join(blocks)

    def _read_once(self, size: int) -> bytes:
        """Read up to `size` bytes, at least one unless the file ends."""
        if self._file is None:
            self._open()
        try:
            block = self._file.read(size)
            total = self._size
            if not block and total is not None and self._place < total:
                raise ConnectionError(f"{self._uri} ended at byte {self._place:,} of {total:,}")
            self._place += len(block)
            return block
        except Exception as error:
            self._drop()
            if type(error).__name__ == "FileExpired":  # from s3fs, which compares etags itself
                raise self._changed() from error
            raise

    @property
    def _size(self) -> int | None:
        return self._version[0] if self._version else None

    def _drop(self) -> None:
        file, self._file = self._file, None
        file.close()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes."""
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True; if the server does not support ranges, `seek` raises."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place.

        Raises:
            io.UnsupportedOperation: if the server does not support ranges.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size or 0}[whence]
        if self._file is not None:
            try:
                self._file.seek(base + offset)
            except ValueError as error:
                raise io.UnsupportedOperation(f"{self._uri}: {error}") from error
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._drop()
        super().close()
