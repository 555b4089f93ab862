"""`out/_temporary/<run>`: where a run writes before anything appears; locked, so that only dead ones are removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import secrets
import time
from collections.abc import Iterator

from clip_transforms import storage

_WEEK = 7 * 24 * 3600


def new_run_id() -> str:
    """A name that sorts by time: `20260131-235959-1a2b3c4d`, in UTC."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class RunFolder:
    """The temporary folder of a run, made at once and removed at the end; a context manager."""

    def __init__(self, output: str, run: str):
        """Make the folder, hold its lock where the file system is local, and remove the folders of dead runs.

        Args:
            output: URI of the dataset.
            run: from `new_run_id`.
        """
        self.uri = storage.join(output, "_temporary", run)
        self._parent = storage.join(output, "_temporary")
        self._lock: int | None = None
        if storage.is_local(output):
            storage.make_folder(output)
            with _locked_folder(output):
                storage.make_folder(self.uri)
                self._lock = _try_lock(os.path.join(storage.normalise(self.uri), "lock"))
                self._remove_dead()
        else:
            storage.make_folder(self.uri)
            self._remove_old()

    def _remove_dead(self) -> None:
        parent = storage.normalise(self._parent)
        for name in os.listdir(parent):
            path = os.path.join(parent, name)
            if path == storage.normalise(self.uri):
                continue
            lock = _try_lock(os.path.join(path, "lock"))
            if lock is not None:
                storage.remove(path)
                os.close(lock)

    def _remove_old(self) -> None:
        oldest = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - _WEEK))
        for name in storage.names_in(self._parent):
            if name < oldest:
                storage.remove(storage.join(self._parent, name))

    def close(self) -> None:
        """Remove the folder and let go of the lock."""
        remove_run_folder(self.uri)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        """The folder itself."""
        return self

    def __exit__(self, *_) -> None:
        """Close, however the run ended."""
        self.close()


def remove_run_folder(uri: str) -> None:
    """Remove `output/_temporary/<run>`, and `_temporary` if nothing else lies in it."""
    storage.remove(uri)
    parent = posixpath.dirname(uri.rstrip("/"))
    if storage.is_local(uri):
        with contextlib.suppress(OSError):  # another run's folder lies beside, or it is gone already
            os.rmdir(storage.normalise(parent))
    elif not any(storage.names_in(parent)):
        storage.remove(parent)


@contextlib.contextmanager
def _locked_folder(uri: str) -> Iterator[None]:
    """Between making a folder and holding its lock, nobody else looks."""
    handle = os.open(storage.normalise(uri), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(path: str) -> int | None:
    """Hold a lock file; None if a living process holds it, or there is no folder for it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
