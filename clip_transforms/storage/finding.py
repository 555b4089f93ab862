"""Find files with their sizes and stamps, in as few requests as possible."""

from __future__ import annotations

import dataclasses
import operator
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from clip_transforms.storage.errors import is_of_the_machine
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


@dataclasses.dataclass
class FilesBelow:
    """The files below a folder.

    Attributes:
        files: sorted by URI.
        passed_over: paths of folders whose files are listed under another path, sorted.
    """

    files: list[FileInfo] = dataclasses.field(default_factory=list)
    passed_over: list[str] = dataclasses.field(default_factory=list)


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


def list_below(uri: str) -> list[FileInfo]:
    """Return every file below a folder, at any depth, sorted by URI; none if there is no such folder.

    Locally, links are followed as `list_folders` describes.
    """
    return list_folders([uri])[uri].files


def list_folders(uris: Iterable[str], skip: Callable[[str], bool] = lambda name: False) -> dict[str, FilesBelow]:
    """Find every file below some folders, at any depth.

    On this machine, links are followed. A link to a file is a file of its own, also if the other file lies in the same
    folder: its name is another key and may have another extension and another caption, and many datasets are laid out
    by such links. A folder is listed under one path only, however many links lead to it: under its real path if that is
    below one of these folders, else under the one of these folders that is a link to it, else under the link that comes
    first in the alphabet. Folders within each other keep their common paths, so that callers can tell their files.

    Args:
        uris: URIs of the folders.
        skip: called with the name of each folder on this machine that is met below them; folders for which it returns
            True are left out.
    """
    found, here = {}, []
    for uri in dict.fromkeys(uris):
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            here.append((uri, path))
        else:
            found[uri] = FilesBelow(_find(fs, path, uri))
    return found | _walk(here, skip)


def _find(fs: AbstractFileSystem, path: str, uri: str) -> list[FileInfo]:
    def find() -> dict[str, Any]:
        fs.invalidate_cache(path)
        return dict(_below(fs, path)) if _leaves_out(fs) else fs.find(path, detail=True)

    return _infos(fs, retried(find, uri)) if exists(uri) else []


def _walk(roots: Iterable[tuple[str, str]], skip: Callable[[str], bool]) -> dict[str, FilesBelow]:
    """List folders of this machine: real ones first, then those that are links, then links that were met in them."""
    found = {uri: FilesBelow() for uri, _ in roots}
    paths: dict[tuple[int, int], str] = {}  # (device, inode) of a folder → the path that it is listed under
    linked = [(uri, path) for uri, path in roots if os.path.realpath(path) != path]
    stages = [[root for root in roots if root not in linked], linked]
    links: list[tuple[str, str]] = []  # (URI of the root, path of the link)
    while stages or links:
        if not stages:
            stages, links = [sorted(links, key=operator.itemgetter(1))], []
        for uri, path in stages.pop(0):
            links.extend((uri, link) for link in _walk_real(path, paths, skip, found[uri]))
    for files in found.values():
        files.files.sort(key=operator.attrgetter("uri"))
        files.passed_over.sort()
    return found


def _walk_real(
    root: str, paths: dict[tuple[int, int], str], skip: Callable[[str], bool], found: FilesBelow
) -> list[str]:
    """List a folder and the real folders below it; return the links to folders that it met."""
    links: list[str] = []
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            entries = list(os.scandir(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if paths.setdefault((status.st_dev, status.st_ino), path) != path:
            found.passed_over.append(path)
            continue
        folders: list[str] = []
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:  # a broken link; it is listed, so that reading it becomes a reject
                if is_of_the_machine(error):
                    raise
                found.files.append(FileInfo(entry.path, 0, "broken link"))
                continue
            if stat.S_ISREG(status.st_mode):
                found.files.append(_local_info(entry.path, status))
            elif stat.S_ISDIR(status.st_mode) and not skip(entry.name):
                (links if entry.is_symlink() else folders).append(entry.path)
        waiting.extend(sorted(folders, reverse=True))
    return links


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def list_matching(pattern: str) -> tuple[list[FileInfo], list[str]]:
    """Return the files, and the URIs of the folders, that a path or a glob names, both sorted."""
    fs, path = filesystem(pattern)
    if isinstance(fs, LocalFileSystem):
        return _matching_here(fs.glob(path) if is_glob(pattern) else [path])
    globbed = is_glob(pattern)

    def find() -> dict[str, Any]:
        fs.invalidate_cache()
        if globbed:
            return _glob(fs, path) if _leaves_out(fs) else fs.glob(path, detail=True)
        try:
            return {path: fs.info(path)}
        except FileNotFoundError:
            return {}

    found = retried(find, pattern)
    folders = [fs.unstrip_protocol(name) for name, info in found.items() if info["type"] == "directory"]
    return _infos(fs, found), sorted(folders)


def _matching_here(paths: Iterable[str]) -> tuple[list[FileInfo], list[str]]:
    infos, folders = [], []
    for path in paths:
        try:
            status = os.stat(path)  # of the target, if it is a link
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            infos.append(_local_info(path, status))
        elif stat.S_ISDIR(status.st_mode):
            folders.append(path)
    return sorted(infos, key=lambda info: info.uri), sorted(folders)


def is_glob(pattern: str) -> bool:
    """Return whether a path is a glob: it has a wildcard, and no file or folder has this very name."""
    return any(character in pattern for character in "*?[") and not exists(pattern)


def _leaves_out(fs: AbstractFileSystem) -> bool:
    """Return whether `find` is fsspec's default, which silently leaves out folders that cannot be listed."""
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is AsyncFileSystem._find
    return type(fs).find is AbstractFileSystem.find


def _below(fs: AbstractFileSystem, path: str, depth: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, info) of everything below a folder, up to a depth. A folder that cannot be listed is an error."""
    for info in fs.ls(path, detail=True):
        name = info["name"].rstrip("/")
        if name != path.rstrip("/"):
            yield name, info
            if info["type"] == "directory" and depth != 1:
                yield from _below(fs, name, depth and depth - 1)


def _glob(fs: AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    magic = min(pattern.index(character) for character in "*?[" if character in pattern)
    root, rest = pattern[:magic].rpartition("/")[0], pattern[magic:]
    matches = re.compile(glob_translate(pattern)).match
    depth = None if "**" in rest else rest.count("/") + 1
    try:
        return {name: info for name, info in _below(fs, root, depth) if matches(name)}
    except FileNotFoundError:
        if fs.exists(root):
            raise
        return {}


def _infos(fs: AbstractFileSystem, found: dict[str, dict]) -> list[FileInfo]:
    infos = [
        FileInfo(fs.unstrip_protocol(path), info["size"], f"{info['size']}-{token_of(info)}")
        for path, info in found.items()
        if info["type"] == "file"
    ]
    return sorted(infos, key=lambda info: info.uri)


def sizes_in(uri: str, suffix: str = "") -> dict[str, int]:
    """Map the names in a folder to sizes in bytes, in one request; empty if there is no such folder.

    Folders and broken links are included.
    """
    fs, path = filesystem(uri)

    def list_it() -> list[dict[str, Any]]:
        fs.invalidate_cache(path)
        return fs.ls(path, detail=True)

    try:
        if isinstance(fs, LocalFileSystem):
            with os.scandir(path) as here:
                # The size of a link itself, since its target may be missing.
                return {e.name: e.stat(follow_symlinks=False).st_size for e in here if e.name.endswith(suffix)}
        entries = retried(list_it, uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    sizes = {posixpath.basename(entry["name"].rstrip("/")): entry.get("size") or 0 for entry in entries}
    return {name: size for name, size in sizes.items() if name.endswith(suffix)}


def names_in(uri: str, suffix: str = "") -> list[str]:
    """Return the names in a folder, as `sizes_in` does."""
    return list(sizes_in(uri, suffix))
