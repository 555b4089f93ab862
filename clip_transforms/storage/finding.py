"""Find files with their sizes and stamps, in as few requests as possible."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import operator
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from clip_transforms.storage.errors import is_of_the_machine
from clip_transforms.storage.location import filesystem, token_of
from clip_transforms.storage.retry import retried

_THREADS = 16
_WILD = "*?["  # the characters that make a path a glob


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


class Unlisted(NamedTuple):
    """The URI of a folder that cannot be listed, and the reason."""

    uri: str
    reason: str


class Matches(NamedTuple):
    """What a path or a glob names.

    Attributes:
        files: the files, sorted by URI.
        folders: URIs of the folders, sorted.
        unlisted: folders that a glob leads through and that cannot be listed.
    """

    files: list[FileInfo]
    folders: list[str]
    unlisted: list[Unlisted] = []  # noqa: RUF012 - never changed


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
        return dict(_below(fs, path, unlisted)) if _leaves_out(fs) else fs.find(path, detail=True)

    files = _infos(fs, retried(find, uri)) if exists(uri) else []
    return FilesBelow(files, unlisted=_unlisted(fs, unlisted))


def _unlisted(fs: AbstractFileSystem, reasons: dict[str, str]) -> list[Unlisted]:
    return [Unlisted(fs.unstrip_protocol(path), reason) for path, reason in sorted(reasons.items())]


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
            found.unlisted.append(Unlisted(path, _reason(error)))
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
                found.files.append(_local_info(entry.path, status))
            elif not stat.S_ISDIR(status.st_mode):
                found.special.append(entry.path)
            elif skip(entry.path[len(root) :].lstrip("/")):
                found.skipped.append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)
        waiting.extend(sorted(folders, reverse=True))
    return links


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


def list_matching(pattern: str) -> Matches:
    """Return the files and folders that a path or a glob names. Nothing else is looked at.

    On this machine a wildcard also matches links to folders, and `**` leads through each folder once, as
    `list_folders` does.

    Raises:
        OSError: if a path that is no glob cannot be looked at.
    """
    fs, path = filesystem(pattern)
    if isinstance(fs, LocalFileSystem):
        return _glob_here(path) if is_glob(pattern) else _matching_here([path])
    globbed = is_glob(pattern)
    unlisted: dict[str, str] = {}

    def find() -> dict[str, Any]:
        unlisted.clear()
        fs.invalidate_cache()
        if globbed:
            return _glob(fs, path, unlisted) if _leaves_out(fs) else fs.glob(path, detail=True)
        try:
            return {path: fs.info(path)}
        except FileNotFoundError:
            return {}

    found = retried(find, pattern)
    folders = [fs.unstrip_protocol(name) for name, info in found.items() if info["type"] == "directory"]
    if path.endswith("/**"):  # all files at any depth
        folders = []
    return Matches(_infos(fs, found), sorted(folders), _unlisted(fs, unlisted))


def _matching_here(paths: Iterable[str]) -> Matches:
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
    return Matches(sorted(infos, key=lambda info: info.uri), sorted(folders))


def _glob_here(pattern: str) -> Matches:
    """Match a glob segment by segment, as a shell does; the `glob` of fsspec passes over links to folders."""
    first, *segments = pattern.split("/")
    paths = [first or "/"]
    unlisted: dict[str, Unlisted] = {}
    for place, segment in enumerate(segments):
        if segment == "**":
            found = [below for path in paths for below in _all_below(path, unlisted)]
            if place == len(segments) - 1:  # all files at any depth
                found = [f"{folder.rstrip('/')}/{name}" for folder in found for name in _names(folder, unlisted)]
                found = [path for path in found if not os.path.isdir(path)]
        elif any(character in segment for character in _WILD):
            matches = glob_regex(segment).match
            found = [f"{path.rstrip('/')}/{segment}" for path in paths]
            found = [path for path in found if os.path.lexists(path)]  # a folder's name may hold wildcards itself
            found += [
                f"{path.rstrip('/')}/{name}" for path in paths for name in _names(path, unlisted) if matches(name)
            ]
        else:
            found = [f"{path.rstrip('/')}/{segment}" for path in paths]
        paths = list(dict.fromkeys(found))
    infos, folders = [], []
    for path in paths:
        try:
            files, below, _ = _matching_here([path])
        except NotADirectoryError:
            continue
        except OSError as error:
            if is_of_the_machine(error):
                raise
            if os.path.islink(path):  # to itself
                infos.append(FileInfo(path, 0, "broken link"))
                continue
            unlisted.setdefault(os.path.dirname(path), Unlisted(os.path.dirname(path), _reason(error)))
            continue
        infos += files
        folders += below
        if not files and not below and os.path.islink(path) and not os.path.exists(path):
            infos.append(FileInfo(path, 0, "broken link"))  # reading it becomes a reject
    return Matches(sorted(infos, key=lambda info: info.uri), sorted(folders), sorted(unlisted.values()))


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

    return _infos(fs, retried(find, uri))


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
            return next(iter(_infos(fs, {path: retried(lambda: fs.info(path), uri)})), None)
        except (FileNotFoundError, PermissionError):  # S3 answers 403 for nothing at all to who may not list the bucket
            return None
    try:
        status = os.stat(path)
        return _local_info(path, status) if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        if is_of_the_machine(error):
            raise
        # Nothing, a name that is too long, or in a folder that may not be entered; or a broken link, which is a reject.
        return FileInfo(path, 0, "broken link") if os.path.islink(path) else None


def _names(folder: str, unlisted: dict[str, Unlisted]) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if is_of_the_machine(error):
            raise
        unlisted[folder] = Unlisted(folder, _reason(error))
        return []


def _all_below(folder: str, unlisted: dict[str, Unlisted]) -> list[str]:
    """Return a folder and all folders below it."""
    if not os.path.isdir(folder):
        return []
    try:
        below = list_folders([folder])[folder]
    except OSError as error:
        if is_of_the_machine(error):
            raise
        unlisted[folder] = Unlisted(folder, _reason(error))
        return []
    unlisted.update({place.uri: place for place in below.unlisted})
    return below.folders


def is_glob(pattern: str) -> bool:
    """Return whether a path is a glob: it has a wildcard, and no file or folder has this very name."""
    return any(character in pattern for character in _WILD) and not exists(pattern)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Compile a glob.

    Raises:
        ValueError: if it is malformed.
    """
    return re.compile(glob_translate(pattern))


def _leaves_out(fs: AbstractFileSystem) -> bool:
    """Return whether `find` is fsspec's default, which silently leaves out folders that cannot be listed."""
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is AsyncFileSystem._find
    return type(fs).find is AbstractFileSystem.find


def _below(
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
                    yield from _below(fs, name, unlisted, depth and depth - 1)
                except PermissionError as error:
                    unlisted[name] = _reason(error)


def _glob(fs: AbstractFileSystem, pattern: str, unlisted: dict[str, str]) -> dict[str, dict[str, Any]]:
    magic = min(pattern.index(character) for character in _WILD if character in pattern)
    root, rest = pattern[:magic].rpartition("/")[0], pattern[magic:]
    matches = glob_regex(pattern).match
    depth = None if "**" in rest else rest.count("/") + 1
    try:
        return {name: info for name, info in _below(fs, root, unlisted, depth) if matches(name)}
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
