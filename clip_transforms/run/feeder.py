"""A feeder: a process that embeds units with its parent's model. It does everything but the forward passes.

It is the first module that such a process runs, so it imports nothing heavy at its top, and never torch.
"""

from __future__ import annotations

import mmap
import queue
import sys
import threading
from typing import Any

from clip_transforms.run.parent import Parent, Progress
from clip_transforms.workers.lifetime import begin


def _work(parent: Parent, file: int) -> None:
    """Embed units for as long as the parent has some."""
    from clip_transforms.clip.tokenizer import default_tokenizer
    from clip_transforms.engine.far_model import FarCaller
    from clip_transforms.engine.forward import Embedder
    from clip_transforms.run.embed_units import PROGRESS, embed_units

    default_tokenizer()  # it takes a while, as the imports do, and the model is not there yet
    job, model, batch_size, classes, cores = parent.hear()
    parent.get_logs()
    progress = Progress(parent, PROGRESS)
    units: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_sort, args=(parent, {"unit": units, "answer": answers}), name="hear", daemon=True).start()

    def ask(request: Any) -> Any:
        parent.tell("ask", request)
        return answers.get()

    memory = mmap.mmap(file, model.memory_bytes(batch_size))
    embedder = Embedder(model, batch_size, FarCaller(model, batch_size, memory, ask))
    for result in embed_units(iter(units.get, None), job, embedder, classes, cores, stop=lambda: units.put(None)):
        progress.tell()
        parent.tell("result", result)


def _sort(parent: Parent, places: dict[str, queue.SimpleQueue]) -> None:
    """Put what the parent says where it is waited for."""
    while True:
        kind, what = parent.hear()
        places[kind].put(what)


def main(pid: int, file: int) -> None:
    """Feed the process with this id; the file is the memory for batches, which it shares."""
    begin(pid)
    parent = Parent()
    with parent.told_of_errors():
        _work(parent, file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
