"""`out/_temporary/<run>`: the folder in which a run prepares its files. A lock in it tells live runs from dead ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
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
BEGUN = "begun"  # the mark that the first worker of a detached run leaves in the run's folder
_HELD = {errno.EAGAIN, errno.EACCES}  # answers if somebody else has the lock; EACCES is that of CIFS and of old NFS
# Answers of file systems without locks, such as Lustre without `-o flock`, some NFS and FUSE mounts.
_NO_LOCKS = {
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
}
_LOGGER = logging.getLogger(__name__)


class BeginError(RuntimeError):
    """The output failed when a run had begun to write what the dataset says of itself, so this is no refusal."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a failure of the output into a BeginError while the block writes what the dataset says of itself."""
    try:
        yield
    except (OSError, storage.StorageError) as error:
        raise BeginError(str(error)) from error


def new_run_id() -> str:
    """Make a name that sorts by time, in UTC: `20260131-235959-1a2b3c4d`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class RunFolder:
    """The temporary folder of a run. It is made at once, and removed when the context ends.

    A run in this process holds a lock in its folder until it ends or dies. Some folders have no lock that can be seen
    here: those of detached runs, those on an object store or on a file system without locks, and those of runs on other
    machines. They count as dead when they are a week old.
    """

    def __init__(self, output: str, run: str, detached: bool = False):
        """Make the folder, and remove the folders of dead runs.

        Args:
            output: URI of the dataset.
            run: the run's id, from `new_run_id`.
            detached: whether the run goes on without this process.
        """
        self.uri = storage.join(output, "_temporary", run)
        self._unfinished = storage.join(output, "_temporary", f".{run}")
        self._output, self._parent = output, storage.join(output, "_temporary")
        self._local = storage.is_local(output)
        self._lock: int | None = None
        self._has_locks = True
        self._made = _missing_folders(output) if self._local else []
        try:
            if self._local:
                storage.make_folder(output)
            with self.alone():
                if self._local:
                    self._make(detached)
                else:
                    storage.make_folder(self.uri)
                self._remove_dead()
        except BaseException:
            self.close()
            raise

    def _make(self, detached: bool) -> None:
        """Make the folder. It appears with its mark inside, or a run on another machine would take it for dead."""
        new = self._unfinished
        try:
            storage.make_folder(new)
        except storage.StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            storage.make_folder(new)  # another run had just ended and removed `_temporary`
        self._mark(storage.normalise(new), detached)
        try:
            os.rename(storage.normalise(new), storage.normalise(self.uri))
        except OSError:  # gcsfuse renames no folders, and CIFS none that holds an open file
            self._release()
            storage.remove(new)
            storage.make_folder(self.uri)
            self._mark(storage.normalise(self.uri), detached)

    def _mark(self, folder: str, detached: bool) -> None:
        """Write the mark into the folder, and lock it."""
        mark = os.path.join(folder, _DETACHED if detached else _LOCK)
        with storage.open_output(mark) as file:
            file.write("\n".join(_this_machine()).encode())
        if not detached:
            handle = os.open(mark, os.O_RDWR)
            self._lock = handle if self._flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) else None
            if self._lock is None:
                os.close(handle)

    def _flock(self, handle: int, operation: int) -> bool:
        """Lock an open file or folder; return False if another process holds it.

        On a file system without locks it returns True, and says so once.
        """
        try:
            fcntl.flock(handle, operation)
        except OSError as error:
            if operation & fcntl.LOCK_NB and error.errno in _HELD:
                return False
            if error.errno not in _NO_LOCKS:
                raise OSError(error.errno, error.strerror, self._output) from None
            if self._has_locks:
                _LOGGER.warning(
                    "the file system of %s has no locks (%s), so two runs at once on it do not see each other; start "
                    "one at a time",
                    self._output,
                    error.strerror,
                )
            self._has_locks = False
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from beginning on this output while the block runs, if the file system is local."""
        if not self._local:
            yield
            return
        handle = os.open(storage.normalise(self._output), os.O_RDONLY)
        try:
            self._flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def others_live(self) -> bool:
        """Whether another run on this machine is known to be at work in the output."""
        if not self._local:
            return False
        others = (storage.join(self._parent, name) for name in storage.names_in(self._parent))
        locks = (os.path.join(storage.normalise(uri), _LOCK) for uri in others if uri != self.uri)
        return any(self._is_unlocked(lock) is False for lock in locks)

    def _remove_dead(self) -> None:
        oldest = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - _WEEK))
        for name in storage.names_in(self._parent):
            uri = storage.join(self._parent, name)
            if uri == self.uri:
                continue
            dead = None
            if self._local and not name.startswith(".") and _is_of_this_machine(storage.normalise(uri)):
                dead = self._is_unlocked(os.path.join(storage.normalise(uri), _LOCK))
            if dead or (dead is None and name.lstrip(".") < oldest):
                storage.remove(uri)

    def _is_unlocked(self, path: str) -> bool | None:
        """Return whether no live process has locked a file; None if that cannot be told."""
        try:
            handle = os.open(path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # the run of another user
            return None
        try:
            free = self._flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return free if self._has_locks else None
        finally:
            os.close(handle)

    def close(self) -> None:
        """Remove the folder, and a new output in which nothing was written."""
        self._release()  # first: NFS and CIFS cannot remove a file that is open
        if self._local:
            storage.remove(self._unfinished)
        remove_run_folder(self.uri)
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)

    def _release(self) -> None:
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


def mark_begun(uri: str) -> None:
    """Leave the mark in a run's folder by which its launcher, perhaps on another machine, sees that a worker has begun.

    Only a step that the end of the run waits for may do this, or the mark could come when the folder has been removed.
    """
    storage.write_bytes(storage.join(uri, BEGUN), b"", uri)


def remove_if_empty(uri: str) -> None:
    """Remove a folder on this machine if nothing is in it; an object store has no empty folders."""
    if storage.is_local(uri):
        with contextlib.suppress(OSError):
            os.rmdir(storage.normalise(uri))


def _missing_folders(path: str) -> list[str]:
    """Return the folder, if it does not exist, and the missing ones above it, the deepest first."""
    missing, place = [], storage.normalise(path)
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    return missing


def _this_machine() -> set[str]:
    """Identify this machine by its name and its kernel's boot id; containers on one machine share the boot id."""
    mark = Path("/proc/sys/kernel/random/boot_id")
    return {socket.gethostname(), mark.read_text().strip() if mark.exists() else ""} - {""}


def _is_of_this_machine(folder: str) -> bool:
    """Whether a folder's run is a process on this machine. A folder without a mark counts as one."""
    if os.path.exists(os.path.join(folder, _DETACHED)):
        return False
    try:
        made = set(Path(folder, _LOCK).read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # of another user: it cannot be told
        return False
    return not made or bool(made & _this_machine())
