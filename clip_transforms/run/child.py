"""One of several processes of a run on this machine. It does the tasks that the launcher hands it, and reports results.

It is the first module that such a process runs, so it imports nothing heavy at its top.
"""

from __future__ import annotations

import gc
import sys

from clip_transforms.run.parent import Parent, Progress
from clip_transforms.workers.lifetime import begin

# What torch and CUDA say where a GPU has no room for a batch, a model, a library or another process at all.
_FULL = ("out of memory", "ALLOC_FAILED", "busy or unavailable")


def _work(launcher: Parent) -> None:
    """Do tasks until none is left, or until the GPU that it shares has no room for this process."""
    job, classes, shares = launcher.hear()
    from clip_transforms.run.embed_units import PROGRESS, embed_task, load_embedder

    launcher.get_logs()
    progress = Progress(launcher, PROGRESS)
    while shares is not None:
        try:
            embedder = load_embedder(job)
            if shares:
                embedder.claim_memory()
            launcher.tell("ready")
            while (task := launcher.hear()) is not None:
                for result in embed_task(task, job, embedder, classes):
                    launcher.tell("result", result)
                progress.tell()
                launcher.tell("ready")
            return
        except RuntimeError as error:
            if not shares or not any(said in str(error) for said in _FULL):
                raise
        embedder = None
        gc.collect()  # a traceback may hold the model still, and the next one must find its memory free
        launcher.tell("full")
        shares = launcher.hear()  # False: it has the GPU for itself now; None: it ends


def main(pid: int) -> None:
    """Work for the launcher that has this process id."""
    begin(pid)
    launcher = Parent()
    with launcher.told_of_errors():
        _work(launcher)


if __name__ == "__main__":
    main(int(sys.argv[1]))
