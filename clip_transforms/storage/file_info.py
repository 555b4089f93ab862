"""Describe files and folders as their file system shows them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.location import filesystem, token_of
from clip_transforms.storage.retry import retried


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as its folder shows it.

    Attributes:
        uri: normalised URI, see `normalise`.
        size: size in bytes.
        stamp: size and etag, or on this machine size and mtime in ns; it changes whenever the file does.
    """

    uri: str
    size: int
    stamp: str


class Unlisted(NamedTuple):
    """The URI of a folder that cannot be listed, and the reason."""

    uri: str
    reason: str


def local_info(path: str, status: os.stat_result) -> FileInfo:
    """Return the FileInfo of a file of this machine."""
    return FileInfo(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def reason_of(error: OSError) -> str:
    """Return why a folder cannot be listed."""
    return f"{type(error).__name__}: {error.strerror or error}"


def infos_among(fs: AbstractFileSystem, found: dict[str, dict]) -> list[FileInfo]:
    """Return the files among what a file system of fsspec found, path → its details, sorted by URI."""
    infos = [
        FileInfo(fs.unstrip_protocol(path), info["size"], f"{info['size']}-{token_of(info)}")
        for path, info in found.items()
        if info["type"] == "file"
    ]
    return sorted(infos, key=lambda info: info.uri)


def leaves_out_folders(fs: AbstractFileSystem) -> bool:
    """Return whether `find` is fsspec's default, which silently leaves out folders that cannot be listed."""
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is AsyncFileSystem._find
    return type(fs).find is AbstractFileSystem.find


def everything_below(
    fs: AbstractFileSystem, path: str, unlisted: dict[str, str], depth: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, info) of everything below a folder, up to a depth.

    A folder below it that may not be listed goes into `unlisted` with the reason; other failures are errors.
    """
    for info in fs.ls(path, detail=True):
        name = info["name"].rstrip("/")
        if name != path.rstrip("/"):
            yield name, info
            if info["type"] == "directory" and depth != 1:
                try:
                    yield from everything_below(fs, name, unlisted, depth and depth - 1)
                except PermissionError as error:
                    unlisted[name] = reason_of(error)


def unlisted_folders(fs: AbstractFileSystem, reasons: dict[str, str]) -> list[Unlisted]:
    """Return the folders that cannot be listed, path → reason, with their URIs."""
    return [Unlisted(fs.unstrip_protocol(path), reason) for path, reason in sorted(reasons.items())]


def exists(uri: str) -> bool:
    """Return whether a file or folder exists.

    Raises:
        OSError: if storage does not answer.
    """
    return _type_of(uri) is not None


def is_folder(uri: str) -> bool:
    """Return whether a folder exists.

    Raises:
        OSError: if storage does not answer.
    """
    return _type_of(uri) == "directory"


def _type_of(uri: str) -> str | None:
    """Return `file`, `directory` or another word of fsspec; None if nothing exists.

    It does not use the `exists` of the file systems, since most of them take every failure for a no.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return "directory" if os.path.isdir(path) else "file" if os.path.exists(path) else None
    try:
        return retried(lambda: fs.info(path), uri)["type"]
    except FileNotFoundError:
        return None
