"""Write whole files only: a file that appears under its final name is complete."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.file_info import exists
from clip_transforms.storage.location import StorageError, filesystem, is_local, normalise
from clip_transforms.storage.retry import retried

# Answers of file systems that lack an operation (CIFS, FUSE, exFAT, NFS with mapped users): nothing is broken then.
_LACKING = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.EISDIR,
}

_TOGETHER = 64  # files that are written before the first of them is synced
_BLOCK_BYTES = 1 << 17  # as a system call gets them
_AT_ONCE = 8  # files that are synced or uploaded at a time


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Make an error of writing name the file, and its cause once: Python and Arrow name no file that is open."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error


class _NamedFile(io.FileIO):
    """A local file that errors of writing name."""

    def __init__(self, path: str, handle: int | None):
        self._path = path
        super().__init__(path if handle is None else handle, "wb")

    def write(self, data: Any, /) -> int:
        with naming(self._path):
            return super().write(data)

    def close(self) -> None:
        with naming(self._path):  # on a network, a file system may say only now that it is full
            super().close()


def open_output(path: str, handle: int | None = None) -> io.BufferedWriter:
    """Open a local file to be written. If its disk is full, the error names the file; that of `open` does not.

    Args:
        path: path of the file.
        handle: of the file, if it is open already; it is closed with the returned file.
    """
    return io.BufferedWriter(_NamedFile(path, handle), _BLOCK_BYTES)


def make_folder(uri: str) -> None:
    """Make a folder and the folders above it, if the file system has folders.

    Raises:
        StorageError: if it cannot be made.
    """
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            os.makedirs(path, exist_ok=True)
        else:
            retried(lambda: fs.makedirs(path, exist_ok=True), uri)
    except OSError as error:
        raise StorageError(f"{uri} cannot be made: {error.strerror or error}; choose another place") from error


def remove(uri: str) -> None:
    """Remove a file, or a folder with everything below it, if it exists."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
    elif exists(uri):
        try:
            retried(lambda: fs.rm(path, recursive=True), uri)
        except FileNotFoundError:  # removed by another run, or by a try whose answer was lost
            return


def remove_files(uris: Sequence[str]) -> None:
    """Remove files of one object store, with few requests. If one is gone already, the others may stay."""
    paths = [filesystem(uri)[1] for uri in uris]
    if paths:
        fs = filesystem(uris[0])[0]
        with contextlib.suppress(FileNotFoundError):
            retried(lambda: fs.rm(paths), uris[0])


def commit_file(local: str, uri: str) -> None:
    """Move a finished local file to its final name, so that it appears there whole and at once.

    On this machine: fsync, a single rename, fsync of the folder. On an object store: a single upload; if interrupted,
    it leaves no object. `local` no longer exists afterwards.
    """
    _fsync_folders([_move(local, uri)])


def write_bytes(uri: str, data: bytes, scratch: str) -> None:
    """Replace a small file as a whole.

    Args:
        uri: URI of the file.
        data: its new bytes.
        scratch: URI of a folder on the same file system; if the process dies, a half-written file may be left there.
    """
    with _written(uri, data, scratch) as local:
        commit_file(local, uri)


def write_files(files: Iterable[tuple[str, bytes | memoryview]], scratch: str) -> None:
    """Replace small files, each as a whole, some at a time.

    On this machine these share what a sync costs, and a file that waits for its fsync, or for its upload, holds up no
    other one. Their folder is synced once, at the end.

    Args:
        files: (URI, new bytes) of each.
        scratch: as of `write_bytes`.
    """
    left, folders = iter(files), set()
    while some := list(itertools.islice(left, _TOGETHER)):
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = [(stack.enter_context(_written(uri, data, scratch)), uri) for uri, data in some]
            folders |= set(pool.map(_move, *zip(*waiting, strict=True)))
    _fsync_folders(folders)


@contextlib.contextmanager
def _written(uri: str, data: bytes | memoryview, scratch: str) -> Iterator[str]:
    """Write a file that is about to be moved to its place; its path. If it was not moved, it goes."""
    handle, local = tempfile.mkstemp(dir=normalise(scratch) if is_local(uri) else None)
    try:
        with open_output(uri if is_local(uri) else local, handle) as file:
            file.write(data)
            file.flush()
            with _optional():  # on exFAT, say, the mount decides who may read
                os.fchmod(handle, 0o644)
            # The disk begins to write. Then the first fsync of several files finds places for all of them in the file
            # system's journal, and the others have little to wait for.
            with _optional(), contextlib.suppress(AttributeError):  # macOS has no such call
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        yield local
    finally:
        Path(local).unlink(missing_ok=True)


def _move(local: str, uri: str) -> str | None:
    """Do the work of `commit_file` but for the fsync of the folder on this machine, which is returned."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        # A new try starts from the beginning, since an interrupted upload leaves nothing.
        retried(lambda: fs.put_file(local, path), uri)
        os.unlink(local)
        return None
    _fsync(local)
    try:
        os.replace(local, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _replace_across(local, path)
    return os.path.dirname(path)


def _fsync_folders(folders: Iterable[str | None]) -> None:
    for folder in folders:
        if folder is not None:
            with _optional():
                _fsync(folder, os.O_RDONLY)


def _replace_across(local: str, path: str) -> None:
    """Replace a file by one of another file system, as where a folder of the output is a link or a mount.

    The bytes are copied to a hidden name beside the final one, so that the file still appears whole and at once.
    """
    folder, name = os.path.split(path)
    handle, beside = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
    try:
        os.close(handle)
        shutil.copyfile(local, beside)
        with _optional():
            shutil.copymode(local, beside)
        _fsync(beside)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    os.unlink(local)


@contextlib.contextmanager
def _optional() -> Iterator[None]:
    """Pass over an operation that this file system lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LACKING:
            raise


def _fsync(path: str, flags: int = os.O_RDWR) -> None:  # some servers do not flush for a handle that may only read
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(handle)
