"""Say so if a job that a cluster runs seems to wait for ever, and go on waiting: nobody else would say it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

from clip_transforms import storage
from clip_transforms.run.run_folder import BEGUN
from clip_transforms.workers.runner import Options
from clip_transforms.workers.watching import watching
from pipelines.terminal import complain

SECONDS = 60.0
_SHARED_POOL = "two task managers share one worker pool (each needs a pool of its own)"
_WHERE = 'see "A cluster that keeps silent" in docs/troubleshooting.md'


@contextlib.contextmanager
def no_silent_wait(folder: str, options: Options) -> Iterator[None]:
    """Watch a run while the block waits for its job, and say once if no worker begins, or if the job does not end.

    Args:
        folder: URI of the run's temporary folder. The first worker leaves a mark there, and the last step removes it.
        options: the runner's options.
    """
    pool = options.get_all_options().get("environment_type") == "EXTERNAL"
    with watching(functools.partial(_watch, folder, pool), "no silent wait"):
        yield


def _watch(folder: str, pool: bool, done: threading.Event) -> None:
    with contextlib.suppress(OSError, storage.StorageError):  # an output that fails ends the job, which then says why
        if done.wait(SECONDS):
            return
        found = set(storage.names_in(folder))
        if found and BEGUN not in found:
            complain(_not_begun(pool))
        while found:
            if done.wait(SECONDS / 2):
                return
            found = set(storage.names_in(folder))
        if not done.wait(SECONDS):
            complain(_not_ended(pool))


def _not_begun(pool: bool) -> str:
    cause = (
        f"either the worker pool's `python` lacks packages (its stderr says so), or {_SHARED_POOL}"
        if pool
        else "the runner may still be starting workers, or have no room for the job; its page or log says which"
    )
    return f"warning: no worker has begun in {SECONDS:.0f} s, and this command goes on waiting: {cause}; {_WHERE}"


def _not_ended(pool: bool) -> str:
    cause = f"perhaps {_SHARED_POOL}" if pool else "its page or log may say why"
    return (
        f"warning: the run was complete {SECONDS:.0f} s ago, but the runner does not end the job, and this command "
        f"goes on waiting: {cause}; {_WHERE}"
    )
