"""The folder in which `browse` keeps what is slow to read from Parquet: outside the dataset, and named by its rows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clip_transforms import storage

_UNFINISHED = ".unfinished-"
_ROOM = 256 << 20  # bytes that stay free


class CacheFolder:
    """Files of one dataset. A file appears whole, and its name says which rows it was made from.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path):
        """Use `CacheFolder.of`."""
        self.path = path
        self._unfinished: set[Path] = set()

    @classmethod
    def of(cls, dataset: str, folder: str | None) -> CacheFolder:
        """Return the folder of a dataset, which need not exist yet.

        Args:
            dataset: URI of the dataset.
            folder: folder for all datasets; by default `clip-transforms` in the user's cache folder.
        Raises:
            ValueError: if there is no home folder and none is given.
        """
        try:
            above = Path(folder).expanduser() if folder else _default()
        except RuntimeError:
            raise ValueError("there is no home folder to keep a cache in; give --cache a folder") from None
        name = dataset.rstrip("/").rpartition("/")[2] or "dataset"
        return cls(above / f"{name[:60]}-{hashlib.sha256(dataset.encode()).hexdigest()[:12]}")

    def place(self, name: str) -> Path:
        """Return where a file lies, whether it exists or not."""
        return self.path / name

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Make a new folder for files that are not finished yet, beside the finished ones; it is removed at the end."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.path))
        self._unfinished.add(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._unfinished.discard(folder)

    def check_room(self, size: int) -> None:
        """Refuse files that do not fit: a file that is mapped into memory would end the process with SIGBUS.

        Raises:
            OSError: if fewer bytes are free.
        """
        if shutil.disk_usage(self.path).free < size + _ROOM:
            raise OSError(errno.ENOSPC, f"it needs {size / 1e9:,.1f} GB, and there is less room on its disk")

    def finish(self, unfinished: Path, names: list[str]) -> None:
        """Give finished files their names, the last one last."""
        for name in names:
            storage.commit_file(str(unfinished / name), str(self.place(name)))

    def clean(self, digest: str, keep: str) -> None:
        """Remove files of rows that the dataset has no more, and what a killed process left an hour ago or earlier.

        Args:
            digest: with what the names of files of the present rows begin.
            keep: the name of the file with these rows and the present labels.
        """
        if not self.path.is_dir():
            return
        for entry in self.path.iterdir():
            if entry.name.startswith(_UNFINISHED):
                if not _is_recent(entry):
                    shutil.rmtree(entry, ignore_errors=True)
            elif not entry.name.startswith(digest) or (entry.suffix == Path(keep).suffix and entry.name != keep):
                entry.unlink(missing_ok=True)

    def give_up(self) -> None:
        """Remove what this process has not finished; it ends now."""
        for folder in tuple(self._unfinished):
            shutil.rmtree(folder, ignore_errors=True)


def _default() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-transforms"


def _is_recent(entry: Path) -> bool:
    newest = max((file.stat().st_mtime for file in (entry, *entry.iterdir())), default=0.0)
    return time.time() - newest < 3_600
