"""Decide which files and folders inside an input are left out: hidden ones, service folders, and those of --exclude."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from clip_transforms import storage

# Folders of NAS systems, of Windows and of file systems, in any case. Spark's and other tools' begin with _.
_SERVICE = ("@eadir", "#recycle", "$recycle.bin", "lost+found")
_NAMED = 5  # number of names of skipped folders that a line shows


def is_hidden_name(name: str) -> bool:
    """Return whether the name is that of a dot file or of macOS's own folder."""
    return name.startswith(".") or name == "__MACOSX"


def is_service_name(name: str) -> bool:
    """Return whether a folder of this name holds leftovers or service files, such as `_temporary` or `@eaDir`."""
    return name.startswith("_") or name.lower() in _SERVICE


def names_service_folders(pattern: str) -> bool:
    """Return whether a glob itself names service folders, as `photos/*/_old/*.jpg`, so that they are not skipped."""
    wild = min((pattern.find(character) for character in "*?[" if character in pattern), default=-1)
    if wild < 0 or not storage.is_glob(pattern):
        return False
    return any(map(is_service_name, pattern[pattern.rfind("/", 0, wild) + 1 :].split("/")))


@dataclasses.dataclass
class Skipped:
    """The files and folders of one source that are left out and shown.

    Attributes:
        folders: paths of the service folders.
        excluded: number of files and folders that --exclude names.
    """

    folders: set[str] = dataclasses.field(default_factory=set)
    excluded: int = 0

    def describe(self) -> str:
        """Return the end of the line that says what was found; empty if nothing was left out."""
        names = Counter(path.rpartition("/")[2] for path in self.folders)
        shown = [f"{count:,} {name}" for name, count in sorted(names.items())]
        more = [f"{len(shown) - _NAMED:,} more names"] if len(shown) > _NAMED else []
        text = f"; skipped folders: {', '.join(shown[:_NAMED] + more)}" if shown else ""
        return text + (f"; excluded: {self.excluded:,}" if self.excluded else "")


class Skipping:
    """The rule by which files and folders are left out. Paths are relative to the folder that an input names.

    Attributes:
        unused: patterns of --exclude that have matched nothing yet.
    """

    def __init__(self, exclude: Sequence[str] = ()):
        """Compile the patterns of --exclude."""
        self._exclude = [
            (pattern, "/" in pattern.strip("/"), storage.glob_regex(pattern.strip("/"))) for pattern in exclude
        ]
        self.unused = dict.fromkeys(exclude)

    def skips_folder(self, path: str) -> bool:
        """Return whether to leave out a folder with all that is in it, given its path."""
        name = path.rpartition("/")[2]
        return is_hidden_name(name) or is_service_name(name) or self.excludes(path)

    def is_left_out(self, path: str) -> bool:
        """Return whether a path is hidden or named by --exclude."""
        return any(map(is_hidden_name, path.split("/"))) or self.excludes(path)

    def skips_below(self, path: str) -> bool:
        """Return whether to leave out a folder, or one above it, given its path."""
        return any(self.skips_folder("/".join(path.split("/")[:stop])) for stop in range(1, path.count("/") + 2))

    def excludes(self, path: str) -> bool:
        """Return whether --exclude names a path, a part of it, or a folder above it."""
        parts = path.split("/")
        found = False
        for pattern, is_path, regex in self._exclude:
            places = ["/".join(parts[:stop]) for stop in range(1, len(parts) + 1)] if is_path else parts
            if any(map(regex.match, places)):
                self.unused.pop(pattern, None)
                found = True
        return found

    def keep(
        self, files: Iterable[storage.FileInfo], root: str, pattern: str, folders: Iterable[str] = ()
    ) -> tuple[list[storage.FileInfo], Skipped]:
        """Sort out the files of a source.

        Args:
            files: the files.
            root: URI of the folder that their paths are relative to.
            pattern: the input that named them.
            folders: folders that were skipped before anybody looked into them.
        Returns:
            The files to look at, and what is left out.
        """
        is_named = names_service_folders(pattern)
        kept, skipped = [], Skipped()
        for folder in folders:
            name = folder.rpartition("/")[2]
            if is_hidden_name(name):
                continue
            if is_service_name(name):
                skipped.folders.add(folder)
            else:
                skipped.excluded += 1
        for file in files:
            path = file.uri[len(root) :].lstrip("/")
            if _HIDDEN.search(path):
                continue
            service = None if is_named else _SERVICE_FOLDER.search(path)
            if service:
                skipped.folders.add(f"{root}/{path[: service.end() - 1]}")
            elif self._exclude and self.excludes(path):
                skipped.excluded += 1
            else:
                kept.append(file)
        return kept, skipped


_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX(?:/|$))")
_SERVICE_FOLDER = re.compile(rf"(?i)(?:^|/)(?:_[^/]*|{'|'.join(map(re.escape, _SERVICE))})/")
