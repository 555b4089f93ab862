"""One of Beam's worker processes on this machine; it ends with its launcher."""

from __future__ import annotations

import logging
import sys

from clip_transforms.workers.lifetime import begin


def main(launcher: int) -> None:
    """Be a worker of the launcher that has this process id."""
    begin(launcher)
    from apache_beam.runners.worker import sdk_worker_main

    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    logging.getLogger().handlers.clear()  # what is said goes to the launcher, which says it once
    logging.disable(logging.INFO)
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
