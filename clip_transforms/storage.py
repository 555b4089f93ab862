"""Files anywhere that fsspec reaches: list, open, the stamp of a file, and whole-file commit. Knows nothing of CLIP."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
import shutil
import tempfile
from pathlib import Path
from typing import IO

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

# What object stores call the thing that changes whenever the bytes do, in the order in which it is trusted.
_ETAG_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "version_id", "generation")
_TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file as a listing shows it.

    Attributes:
        uri: normalised, see `normalise`.
        size: bytes.
        stamp: size and etag; locally size and mtime in ns. It differs when the file was changed.
    """

    uri: str
    size: int
    stamp: str


class StorageError(ValueError):
    """A URI that cannot be used, in one sentence for the person who wrote it."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        StorageError: if its protocol is unknown or its package is not installed.
    """
    try:
        fs, path = url_to_fs(uri)
        return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path
    except ImportError as error:
        protocol = uri.split("://")[0]
        extra = {"gs": "[gcp]", "gcs": "[gcp]", "s3": "[aws]", "s3a": "[aws]"}.get(protocol)
        cure = f"pip install 'clip-transforms{extra}'" if extra else str(error)
        raise StorageError(f"{uri} needs a package that is not installed: {cure}") from error
    except ValueError as error:
        raise StorageError(f"{uri} cannot be opened: {error}") from error


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def normalise(uri: str) -> str:
    """Absolute, without `file://`, without a trailing slash: the name under which a shard is known."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return path
    return fs.unstrip_protocol(path).rstrip("/")


def join(base: str, *names: str) -> str:
    """A path below a URI."""
    return posixpath.join(base, *names)


def check_writable(uri: str) -> None:
    """Refuse a local folder that cannot be written to, or not be made, without writing anything.

    Raises:
        StorageError: naming it.
    """
    if not is_local(uri):
        return  # an object store says so at the first upload
    place = Path(normalise(uri))
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(
            f"--output {uri} cannot be written to: {place} is read-only or no folder; choose another place"
        )


def open_input(uri: str) -> IO[bytes]:
    """Open a file for reading."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


def read_bytes(uri: str) -> bytes:
    """Read a whole small file."""
    with open_input(uri) as file:
        return file.read()


def exists(uri: str) -> bool:
    """Whether something lies there."""
    fs, path = filesystem(uri)
    return fs.exists(path)


def is_folder(uri: str) -> bool:
    """Whether a folder lies there."""
    fs, path = filesystem(uri)
    return fs.isdir(path)


def list_below(uri: str) -> list[FileInfo]:
    """Every file below a folder, at any depth, from one listing, sorted by URI; none if there is no such folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    return _infos(fs, fs.find(path, detail=True))


def list_matching(pattern: str) -> tuple[list[FileInfo], list[str]]:
    """The files, and the URIs of the folders, that a path or a glob names, sorted; none if nothing matches."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    if has_glob(pattern):
        found = fs.glob(path, detail=True)
    else:
        found = {path: fs.info(path)} if fs.exists(path) else {}
    folders = [
        name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
        for name, info in found.items()
        if info["type"] == "directory"
    ]
    return _infos(fs, found), sorted(folders)


def has_glob(uri: str) -> bool:
    """Whether a path has one of the characters of a glob."""
    return any(character in uri for character in "*?[")


def _infos(fs: fsspec.AbstractFileSystem, found: dict[str, dict]) -> list[FileInfo]:
    local = isinstance(fs, LocalFileSystem)
    infos = []
    for path, info in found.items():
        if info["type"] != "file":
            continue
        if local:
            uri, stamp = path, f"{info['size']}-{os.stat(path).st_mtime_ns}"
        else:
            token = next((str(info[key]) for key in (*_ETAG_KEYS, *_TIME_KEYS) if info.get(key)), "")
            uri, stamp = fs.unstrip_protocol(path), f"{info['size']}-{token.strip(chr(34))}"
        infos.append(FileInfo(uri, info["size"], stamp))
    return sorted(infos, key=lambda info: info.uri)


def sha256(uri: str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open_input(uri) as file:
        if hasattr(file, "fileno") and is_local(uri):
            with open(filesystem(uri)[1], "rb") as local:
                return hashlib.file_digest(local, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def make_folder(uri: str) -> None:
    """Make a folder and those above it, where the file system has folders.

    Raises:
        StorageError: if it cannot be made.
    """
    fs, path = filesystem(uri)
    try:
        fs.makedirs(path, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{uri} cannot be made: {error.strerror or error}; choose another place") from error


def remove(uri: str) -> None:
    """Remove a file or a folder with all below it; nothing happens if it is not there."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
    elif fs.exists(path):
        fs.rm(path, recursive=True)


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
        fs.put_file(local, path)
        os.unlink(local)


def write_bytes(uri: str, data: bytes) -> None:
    """Replace a small file whole."""
    folder = posixpath.dirname(filesystem(uri)[1]) if is_local(uri) else None
    if folder:
        os.makedirs(folder, exist_ok=True)
    handle, local = tempfile.mkstemp(prefix=".", dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.chmod(local, 0o644)
    commit_file(local, uri)


def _fsync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sizes_in(uri: str, suffix: str = "") -> dict[str, int]:
    """Name → bytes of the files in a folder, from one listing; folders too, of no size. Empty if there is no folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        if isinstance(fs, LocalFileSystem):
            with os.scandir(path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(suffix)}
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    sizes = {posixpath.basename(entry["name"].rstrip("/")): entry.get("size") or 0 for entry in entries}
    return {name: size for name, size in sizes.items() if name.endswith(suffix)}


def names_in(uri: str, suffix: str = "") -> list[str]:
    """The names of `sizes_in`."""
    return list(sizes_in(uri, suffix))
