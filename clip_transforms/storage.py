"""Files anywhere that fsspec reaches: list, open, the stamp of a file, and whole-file commit. Knows nothing of CLIP."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import shutil
import stat
import tempfile
from collections.abc import Iterator
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


_LOCAL = LocalFileSystem()


class StorageError(ValueError):
    """A URI that cannot be used, in one sentence for the person who wrote it."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        StorageError: if its protocol is unknown or its package is not installed.
    """
    if "://" not in uri:  # fsspec would take :: in a name for a chain of file systems
        return _LOCAL, os.path.abspath(uri)
    try:
        fs, path = url_to_fs(uri)
        return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path
    except ImportError as error:
        protocol = uri.split("://")[0]
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}.get(protocol)
        cure = f"pip install {package}" if package else str(error)
        raise StorageError(f"{uri} needs a package that is not installed: {cure}") from error
    except Exception as error:  # each file system has its own way to say that a URI is not for it
        raise StorageError(f"{uri} cannot be opened: {error or type(error).__name__}") from error


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


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path of this machine with a file's bytes: the file itself, or a copy that is gone after the block."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    handle, local = tempfile.mkstemp(prefix="clip-transforms-")
    os.close(handle)
    try:
        fs.get_file(path, local)
        yield local
    finally:
        Path(local).unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """Whether something lies there."""
    fs, path = filesystem(uri)
    return fs.exists(path)


def is_folder(uri: str) -> bool:
    """Whether a folder lies there."""
    fs, path = filesystem(uri)
    return fs.isdir(path)


def list_below(uri: str) -> list[FileInfo]:
    """Every file below a folder, at any depth, sorted by URI; none if there is no such folder.

    Locally, links are followed: a link to a file is a file, one to a folder is a folder, once.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return sorted(_walk(path, set()), key=lambda info: info.uri)
    fs.invalidate_cache(path)
    return _infos(fs, fs.find(path, detail=True)) if fs.exists(path) else []


def _walk(path: str, above: set[tuple[int, int]]) -> Iterator[FileInfo]:
    try:
        entries = list(os.scandir(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        try:
            status = entry.stat()
        except OSError:  # a link to nothing; listed, so that it is found missing and said so, not passed over
            yield FileInfo(entry.path, 0, "broken link")
            continue
        if stat.S_ISREG(status.st_mode):
            yield FileInfo(entry.path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
        elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in above:
            yield from _walk(entry.path, above | {(status.st_dev, status.st_ino)})


def list_matching(pattern: str) -> tuple[list[FileInfo], list[str]]:
    """The files, and the URIs of the folders, that a path or a glob names, sorted; none if nothing matches."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    if is_glob(pattern):
        found = fs.glob(path, detail=True)
    else:
        found = {path: fs.info(path)} if fs.exists(path) else {}
    folders = [
        name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
        for name, info in found.items()
        if info["type"] == "directory"
    ]
    return _infos(fs, found), sorted(folders)


def is_glob(pattern: str) -> bool:
    """Whether a path is a glob: it has one of its characters, and no file is called so."""
    return any(character in pattern for character in "*?[") and not exists(pattern)


def _infos(fs: fsspec.AbstractFileSystem, found: dict[str, dict]) -> list[FileInfo]:
    local = isinstance(fs, LocalFileSystem)
    infos = []
    for path, info in found.items():
        if local:
            if not os.path.isfile(path):
                continue
            status = os.stat(path)  # of what a link points to
            infos.append(FileInfo(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}"))
        elif info["type"] == "file":
            token = next((str(info[key]) for key in (*_ETAG_KEYS, *_TIME_KEYS) if info.get(key)), "")
            stamp = f"{info['size']}-{token.strip(chr(34))}"
            infos.append(FileInfo(fs.unstrip_protocol(path), info["size"], stamp))
    return sorted(infos, key=lambda info: info.uri)


def sha256(uri: str) -> str:
    """Hex SHA-256 of a file's bytes."""
    if is_local(uri):
        with open(filesystem(uri)[1], "rb") as local:
            return sha256_of(local)
    with open_input(uri) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def sha256_of(file: IO[bytes]) -> str:
    """Hex SHA-256 of an open local file, from where it stands to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()


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


def write_bytes(uri: str, data: bytes, scratch: str) -> None:
    """Replace a small file whole.

    Args:
        uri: of the file.
        data: all of it.
        scratch: URI of a folder on the same file system, where a half-written file may lie when the process dies.
    """
    handle, local = tempfile.mkstemp(dir=normalise(scratch) if is_local(uri) else None)
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
    """Name → bytes of what lies in a folder, from one listing; folders and broken links too. Empty if there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        if isinstance(fs, LocalFileSystem):
            with os.scandir(path) as entries:
                # Of a link its own size: what it points to may be gone, and the link is there all the same.
                return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.name.endswith(suffix)}
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    sizes = {posixpath.basename(entry["name"].rstrip("/")): entry.get("size") or 0 for entry in entries}
    return {name: size for name, size in sizes.items() if name.endswith(suffix)}


def names_in(uri: str, suffix: str = "") -> list[str]:
    """The names of `sizes_in`."""
    return list(sizes_in(uri, suffix))
