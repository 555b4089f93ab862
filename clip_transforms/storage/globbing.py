"""Find the files and folders that a path or a glob names, and look at nothing else."""

from __future__ import annotations

import os
import re
import stat
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from clip_transforms.storage.errors import is_of_the_machine, unanswered
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
from clip_transforms.storage.finding import list_folders
from clip_transforms.storage.location import filesystem
from clip_transforms.storage.retry import retried

_WILD = "*?["  # the characters that make a path a glob


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


def list_matching(pattern: str) -> Matches:
    """Return the files and folders that a path or a glob names. Nothing else is looked at.

    On this machine a wildcard also matches links to folders, and `**` leads through each folder once, as
    `list_folders` does.

    Raises:
        OSError: if a path that is no glob cannot be looked at.
    """
    fs, path = filesystem(pattern)
    if isinstance(fs, LocalFileSystem):
        if is_glob(pattern):
            return _glob_here(path)
        _add_to(matches := Matches([], []), path)
        return matches
    globbed = is_glob(pattern)
    unlisted: dict[str, str] = {}

    def find() -> dict[str, Any]:
        unlisted.clear()
        fs.invalidate_cache()
        if globbed:
            return _glob(fs, path, unlisted) if leaves_out_folders(fs) else fs.glob(path, detail=True)
        try:
            return {path: fs.info(path)}
        except FileNotFoundError as error:
            if unanswered(error) is not None:
                raise
            return {}

    found = retried(find, pattern)
    folders = [fs.unstrip_protocol(name) for name, info in found.items() if info["type"] == "directory"]
    if path.endswith("/**"):  # all files at any depth
        folders = []
    return Matches(infos_among(fs, found), sorted(folders), unlisted_folders(fs, unlisted))


def _add_to(matches: Matches, path: str) -> bool:
    """Add a path of this machine to the files or the folders; return False if it is neither."""
    try:
        status = os.stat(path)  # of the target, if it is a link
    except FileNotFoundError:
        return False
    if stat.S_ISREG(status.st_mode):
        matches.files.append(local_info(path, status))
    elif stat.S_ISDIR(status.st_mode):
        matches.folders.append(path)
    else:
        return False
    return True


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
    found_here = Matches([], [])
    for path in paths:
        try:
            is_there = _add_to(found_here, path)
        except NotADirectoryError:
            continue
        except OSError as error:
            if is_of_the_machine(error):
                raise
            if os.path.islink(path):  # to itself
                found_here.files.append(FileInfo(path, 0, "broken link"))
                continue
            unlisted.setdefault(os.path.dirname(path), Unlisted(os.path.dirname(path), reason_of(error)))
            continue
        if not is_there and os.path.islink(path) and not os.path.exists(path):
            found_here.files.append(FileInfo(path, 0, "broken link"))  # reading it becomes a reject
    files = sorted(found_here.files, key=lambda info: info.uri)
    return Matches(files, sorted(found_here.folders), sorted(unlisted.values()))


def _names(folder: str, unlisted: dict[str, Unlisted]) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if is_of_the_machine(error):
            raise
        unlisted[folder] = Unlisted(folder, reason_of(error))
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
        unlisted[folder] = Unlisted(folder, reason_of(error))
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


def _glob(fs: AbstractFileSystem, pattern: str, unlisted: dict[str, str]) -> dict[str, dict[str, Any]]:
    magic = min(pattern.index(character) for character in _WILD if character in pattern)
    root, rest = pattern[:magic].rpartition("/")[0], pattern[magic:]
    matches = glob_regex(pattern).match
    depth = None if "**" in rest else rest.count("/") + 1
    try:
        return {name: info for name, info in everything_below(fs, root, unlisted, depth) if matches(name)}
    except FileNotFoundError:
        if fs.exists(root):
            raise
        return {}
