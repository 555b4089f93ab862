"""Write whole files only: a file that appears under its final name is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.finding import exists
from clip_transforms.storage.location import StorageError, filesystem, is_local, normalise
from clip_transforms.storage.retry import retried


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


def commit_file(local: str, uri: str) -> None:
    """Move a finished local file to its final name, so that it appears there whole and at once.

    On this machine: fsync, a single rename, fsync of the folder; `local` must lie on the same file system. On an object
    store: a single upload; if interrupted, it leaves no object. `local` no longer exists afterwards.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with open(local, "rb") as file:
            os.fsync(file.fileno())
        os.replace(local, path)
        _fsync_folder(os.path.dirname(path))
    else:
        retried(
            lambda: fs.put_file(local, path), uri
        )  # a new try starts from the beginning, since an interrupted upload leaves nothing
        os.unlink(local)


def write_bytes(uri: str, data: bytes, scratch: str) -> None:
    """Replace a small file as a whole.

    Args:
        uri: URI of the file.
        data: its new bytes.
        scratch: URI of a folder on the same file system; if the process dies, a half-written file may be left there.
    """
    handle, local = tempfile.mkstemp(dir=normalise(scratch) if is_local(uri) else None)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(local, 0o644)
        commit_file(local, uri)
    except BaseException:
        Path(local).unlink(missing_ok=True)
        raise


def _fsync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
