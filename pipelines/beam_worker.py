"""One of Beam's worker processes on this machine. It ends with its launcher.

At its top this module imports only the standard library: it is the first thing that such a process runs.
"""

from __future__ import annotations

import logging
import os
import sys

from clip_transforms.workers.lifetime import begin
from pipelines.terminal import tracebacks_are_wanted


def main(launcher: int) -> None:
    """Work for the launcher.

    Args:
        launcher: its process id.
    """
    begin(launcher)
    from apache_beam.runners.worker import sdk_worker_main

    print_no_tracebacks()
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    logging.getLogger().handlers.clear()  # log records go to the launcher, which prints them once
    logging.disable(logging.INFO)
    code = 1
    try:
        sdk_worker_main.main(sys.argv)
        code = 0
    finally:
        # At once: threads may still read and decode, and Python cannot end them without an abort. Beam has logged the
        # error, if there was one.
        os._exit(code)


def print_no_tracebacks() -> None:
    """Keep Beam's workers in this process from printing the traceback of a failed bundle.

    They also log it and return it to the runner, so nothing is lost.
    """
    from apache_beam.runners.worker import sdk_worker

    if not tracebacks_are_wanted():
        vars(sdk_worker)["print"] = lambda *_, **__: None


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
