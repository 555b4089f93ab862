"""A feeder: a process that embeds units with its parent's model. It does everything but the forward passes.

It is the first module that such a process runs, so it imports nothing heavy at its top, and never torch.
"""

from __future__ import annotations

import mmap
import sys

from clip_transforms.run.parent import Parent, Progress
from clip_transforms.workers.lifetime import begin


def _work(parent: Parent, file: int) -> None:
    """Embed runs of units until none is left."""
    from clip_transforms.clip.tokenizer import default_tokenizer
    from clip_transforms.engine.far_model import FarCaller
    from clip_transforms.engine.forward import Embedder
    from clip_transforms.run.embed_units import PROGRESS, embed_units

    default_tokenizer()  # it takes a while, as the imports do, and the model is not there yet
    job, model, batch_size = parent.hear()
    parent.get_logs()
    progress = Progress(parent, PROGRESS)
    caller = FarCaller(model, batch_size, mmap.mmap(file, model.memory_bytes(batch_size)), parent.ask)
    embedder = Embedder(model, batch_size, caller)
    while (work := parent.hear()) is not None:
        units, classes, cores = work
        for result in embed_units(units, job, embedder, classes, cores):
            parent.tell("result", result)
        progress.tell()
        parent.tell("ready")


def main(pid: int, file: int) -> None:
    """Feed the process with this id; the file is the memory for batches, which it shares."""
    begin(pid)
    parent = Parent()
    with parent.told_of_errors():
        _work(parent, file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
