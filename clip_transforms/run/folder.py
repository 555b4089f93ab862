"""`out/_temporary/<run>`: the folder in which a run prepares its files. A lock in it tells live runs from dead ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from clip_transforms import storage

_WEEK = 7 * 24 * 3600
_LOCK, _DETACHED = "lock", "detached"


def new_run_id() -> str:
    """Make a name that sorts by time, in UTC: `20260131-235959-1a2b3c4d`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class RunFolder:
    """The temporary folder of a run. It is made at once, and removed when the context ends.

    A run in this process holds a lock in its folder until it ends or dies. Some folders have no lock that can be seen
    here: those of detached runs, those on an object store, and those of runs on other machines. They count as dead when
    they are a week old.
    """

    def __init__(self, output: str, run: str, detached: bool = False):
        """Make the folder, and remove the folders of dead runs.

        Args:
            output: URI of the dataset.
            run: the run's id, from `new_run_id`.
            detached: whether the run goes on without this process.
        """
        self.uri = storage.join(output, "_temporary", run)
        self._output, self._parent = output, storage.join(output, "_temporary")
        self._local = storage.is_local(output)
        self._lock: int | None = None
        if self._local:
            storage.make_folder(output)
        with self.alone():
            if self._local:
                self._lock = self._make(run, detached)
            else:
                storage.make_folder(self.uri)
            self._remove_dead()

    def _make(self, run: str, detached: bool) -> int | None:
        """Make the folder. It appears with its mark inside, or a run on another machine would take it for dead."""
        new = os.path.join(storage.normalise(self._parent), f".{run}")
        try:
            storage.make_folder(new)
        except storage.StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            storage.make_folder(new)  # another run had just ended and removed `_temporary`
        mark = os.path.join(new, _DETACHED if detached else _LOCK)
        with open(mark, "w") as file:
            file.write("\n".join(_this_machine()))
        lock = None if detached else _try_lock(mark)
        os.rename(new, storage.normalise(self.uri))
        return lock

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from beginning on this output while the block runs, if the file system is local."""
        if not self._local:
            yield
            return
        handle = os.open(storage.normalise(self._output), os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _remove_dead(self) -> None:
        oldest = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - _WEEK))
        for name in storage.names_in(self._parent):
            uri = storage.join(self._parent, name)
            if uri == self.uri:
                continue
            if self._local and not name.startswith(".") and _is_of_this_machine(storage.normalise(uri)):
                dead = not _is_locked(os.path.join(storage.normalise(uri), _LOCK))
            else:
                dead = name.lstrip(".") < oldest
            if dead:
                storage.remove(uri)

    def close(self) -> None:
        """Remove the folder and release the lock."""
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
    """Remove `output/_temporary/<run>`, and `_temporary` too if it is empty then."""
    storage.remove(uri)
    parent = posixpath.dirname(uri.rstrip("/"))
    if storage.is_local(uri):
        with contextlib.suppress(OSError):  # it holds another run's folder, or it is gone already
            os.rmdir(storage.normalise(parent))
    elif not any(storage.names_in(parent)):
        storage.remove(parent)


def _this_machine() -> set[str]:
    """Identify this machine by its name and its kernel's boot id; containers on one machine share the boot id."""
    mark = Path("/proc/sys/kernel/random/boot_id")
    return {socket.gethostname(), mark.read_text().strip() if mark.exists() else ""} - {""}


def _is_of_this_machine(folder: str) -> bool:
    """Whether a folder's run is a process on this machine. A folder that does not say counts as one."""
    if os.path.exists(os.path.join(folder, _DETACHED)):
        return False
    try:
        made = set(Path(folder, _LOCK).read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return True
    return not made or bool(made & _this_machine())


def _try_lock(path: str) -> int | None:
    """Lock a file; None if another process has locked it, or it is gone."""
    try:
        handle = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _is_locked(path: str) -> bool:
    """Whether a live process has locked a file."""
    handle = _try_lock(path)
    if handle is not None:
        os.close(handle)
    return handle is None and os.path.exists(path)
