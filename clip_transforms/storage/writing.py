"""Whole files only: what appears under its final name is complete."""

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
    """Make a folder and those above it, where the file system has folders.

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
    """Remove a file or a folder with all below it; nothing happens if it is not there."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
    elif exists(uri):
        try:
            retried(lambda: fs.rm(path, recursive=True), uri)
        except FileNotFoundError:  # by another run, or by a try whose answer was lost
            return


def commit_file(local: str, uri: str) -> None:
    """Let a finished local file appear under its final name, whole and at once.

    Locally: fsync, one rename, fsync of the folder; `local` must lie on the same file system. On an object store: one
    upload, of which a killed one leaves no object. `local` is gone afterwards.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with open(local, "rb") as file:
            os.fsync(file.fileno())
        os.replace(local, path)
        _fsync_folder(os.path.dirname(path))
    else:
        retried(lambda: fs.put_file(local, path), uri)  # again from its start: half an upload leaves nothing
        os.unlink(local)


def write_bytes(uri: str, data: bytes, scratch: str) -> None:
    """Replace a small file whole.

    Args:
        uri: of the file.
        data: all of it.
        scratch: URI of a folder on the same file system, where a half-written file may lie when the process dies.
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
