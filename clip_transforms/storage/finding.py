"""List folders with the sizes and stamps of their files, in as few requests as possible."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import operator
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.errors import is_of_the_machine
from clip_transforms.storage.file_info import (
    FileInfo,
    Unlisted,
    everything_below,
    exists,
    infos_among,
    leaves_out_folders,
    local_info,
    reason_of,
    unlisted_folders,
)
from clip_transforms.storage.location import filesystem, stamp_of
from clip_transforms.storage.retry import retried

_THREADS = 16


@dataclasses.dataclass
class FilesBelow:
    """The files below a folder.

    Attributes:
        files: sorted by URI.
        folders: paths of the folders that were listed, the topmost included; only on this machine.
        passed_over: paths of folders whose files are listed under another path, sorted.
        skipped: paths of the folders that the caller skipped, sorted.
        unlisted: folders that cannot be listed, sorted.
        special: paths of pipes, sockets and devices, sorted.
    """

    files: list[FileInfo] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    passed_over: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    unlisted: list[Unlisted] = dataclasses.field(default_factory=list)
    special: list[str] = dataclasses.field(default_factory=list)


def list_below(uri: str) -> list[FileInfo]:
    """Return every file below a folder, at any depth, sorted by URI; none if there is no such folder.

    Locally, links are followed as `list_folders` describes.

    Raises:
        OSError: if a folder cannot be listed.
    """
    found = list_folders([uri])[uri]
    if found.unlisted:
        raise PermissionError(errno.EACCES, found.unlisted[0].reason, found.unlisted[0].uri)
    return found.files


def list_folders(uris: Iterable[str], skip: Callable[[str], bool] = lambda path: False) -> dict[str, FilesBelow]:
    """Find every file below some folders, at any depth. A folder below them that cannot be listed is named.

    On this machine, links are followed. A link to a file is a file of its own, also if the other file lies in the same
    folder: its name is another key and may have another extension and another caption, and many datasets are laid out
    by such links. A folder is listed under one path only, however many links lead to it: under its real path if that is
    below one of these folders, else under the one of these folders that is a link to it, else under the link that comes
    first in the alphabet. Folders within each other keep their common paths, so that callers can tell their files.

    Args:
        uris: URIs of the folders.
        skip: called with the path of each folder on this machine that is met below them, relative to the one that is
            listed; folders for which it returns True are left out.
    Raises:
        OSError: if one of the folders itself cannot be listed.
    """
    found, here = {}, []
    for uri in dict.fromkeys(uris):
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            here.append((uri, path))
        else:
            found[uri] = _find(fs, path, uri)
    return found | _walk(here, skip)


def _find(fs: AbstractFileSystem, path: str, uri: str) -> FilesBelow:
    unlisted: dict[str, str] = {}

    def find() -> dict[str, Any]:
        unlisted.clear()
        fs.invalidate_cache(path)
        return dict(everything_below(fs, path, unlisted)) if leaves_out_folders(fs) else fs.find(path, detail=True)

    files = infos_among(fs, retried(find, uri)) if exists(uri) else []
    return FilesBelow(files, unlisted=unlisted_folders(fs, unlisted))


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
        for paths_of in (files.folders, files.passed_over, files.skipped, files.unlisted, files.special):
            paths_of.sort()
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
        except OSError as error:  # most often a folder of somebody else
            if path == root or is_of_the_machine(error):
                raise
            found.unlisted.append(Unlisted(path, reason_of(error)))
            continue
        if paths.setdefault((status.st_dev, status.st_ino), path) != path:
            found.passed_over.append(path)
            continue
        found.folders.append(path)
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
                found.files.append(local_info(entry.path, status))
            elif not stat.S_ISDIR(status.st_mode):
                found.special.append(entry.path)
            elif skip(entry.path[len(root) :].lstrip("/")):
                found.skipped.append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)
        waiting.extend(sorted(folders, reverse=True))
    return links


def list_folder(uri: str) -> list[FileInfo]:
    """Return the files that lie in a folder itself, sorted by URI; none if there is no such folder.

    Raises:
        PermissionError: if it may not be listed.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        names = os.listdir(path) if os.path.isdir(path) else []
        return infos_of([f"{path.rstrip('/')}/{name}" for name in names])

    def find() -> dict[str, Any]:
        fs.invalidate_cache(path)
        try:
            return {info["name"]: info for info in fs.ls(path, detail=True)}
        except FileNotFoundError:
            return {}

    return infos_among(fs, retried(find, uri))


def infos_of(uris: Sequence[str]) -> list[FileInfo]:
    """Return those of some files that exist, sorted by URI; one request each, and nothing else is looked at."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        local = all("://" not in uri for uri in uris)
        found = [info for info in (map(_info_of, uris) if local else pool.map(_info_of, uris)) if info is not None]
    return sorted(found, key=lambda info: info.uri)


def _info_of(uri: str) -> FileInfo | None:
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            return next(iter(infos_among(fs, {path: retried(lambda: fs.info(path), uri)})), None)
        except (FileNotFoundError, PermissionError):  # S3 answers 403 for nothing at all to who may not list the bucket
            return None
    try:
        status = os.stat(path)
        return local_info(path, status) if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        if is_of_the_machine(error):
            raise
        # Nothing, a name that is too long, or in a folder that may not be entered; or a broken link, which is a reject.
        return FileInfo(path, 0, "broken link") if os.path.islink(path) else None


def names_in(uri: str, suffix: str = "") -> list[str]:
    """Return the names in a folder that end in `suffix`, from one request; none if there is no such folder.

    Folders and broken links are included.
    """
    return list(stamps_in(uri, suffix))


def stamps_in(uri: str, suffix: str = "") -> dict[str, str]:
    """Return the names that `names_in` returns, each with the file's stamp; one walk through the pages of a listing.

    The stamp is empty for folders, on this machine, and on a store without etags; see `stamp_of`.
    """
    fs, path = filesystem(uri)

    def list_it() -> list[dict[str, Any]]:
        fs.invalidate_cache(path)
        return fs.ls(path, detail=True)

    try:
        if isinstance(fs, LocalFileSystem):
            return {name: "" for name in os.listdir(path) if name.endswith(suffix)}
        entries = retried(list_it, uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    names = ((posixpath.basename(entry["name"].rstrip("/")), entry) for entry in entries)
    return {name: stamp_of(entry) for name, entry in names if name.endswith(suffix)}


def stamp(uri: str) -> str:
    """Return the stamp of a file as its store shows it now, see `stamp_of`; empty if the file does not exist."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return ""

    def ask() -> dict[str, Any]:
        fs.invalidate_cache(path)
        return fs.info(path)

    try:
        return stamp_of(retried(ask, uri))
    except FileNotFoundError:
        return ""
