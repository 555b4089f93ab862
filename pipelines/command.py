"""Start a command: signals and streams first, then Beam and the command itself, and an exit code at the end.

At its top this module imports only the standard library. Beam takes a second to import, and Ctrl-C must end in a
sentence during that second too.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
from typing import Any, NoReturn

from pipelines.terminal import complain, on_signals, open_streams, plain_logs, plain_threads, printable

DONE, FAILED, WRONG, INCOMPLETE = 0, 1, 2, 3


def run_command(module: str) -> NoReturn:
    """Run a command and exit with its code. A wrong command line is one sentence and exit 2.

    Args:
        module: full name of the command's module. Its `main(argv)` returns the exit code.
    """
    _prepare()
    _import_beam()
    _run(module)


def run_light_command(module: str) -> NoReturn:
    """Run a command that does without Beam, and so begins at once; otherwise as `run_command`."""
    _prepare()
    _run(module)


def _prepare() -> None:
    open_streams()
    on_signals(end_before_start)
    _check_temporary_folder()


def _run(module: str) -> NoReturn:
    main = importlib.import_module(module).main
    plain_logs()
    plain_threads()
    try:
        code = main(sys.argv[1:])
    except ValueError as error:
        refuse(str(error))
    except MemoryError:
        complain("the command failed: this machine has not enough memory for it; what is committed stays")
        code = FAILED
    except OSError as error:  # before anything was started; a run reports its own end
        where = error.filename or "a file or folder of the command line"
        refuse(f"{where} cannot be used: {error.strerror or error}; check the path and who may read it")
    sys.exit(code)


def end_before_start(number: int, _: Any) -> None:
    """Handle a signal that comes before a run has begun."""
    complain(f"\nended by {signal.Signals(number).name}; nothing was started")
    os._exit(FAILED)


def end_after_run(number: int, _: Any) -> None:
    """Handle a signal that comes after a run has ended."""
    complain(f"\nended by {signal.Signals(number).name}; the run had ended before, and its results are there")
    os._exit(FAILED)


def _check_temporary_folder() -> None:
    """Refuse a machine without a temporary folder: Beam asks for one while it is imported."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        refuse("there is no temporary folder that can be written to; set TMPDIR to a folder with room")


def _import_beam() -> None:
    """Import Beam first: without it there is one sentence, and no warning."""
    try:
        import clip_transforms.run.beam  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        refuse("apache_beam is not installed here: `make demo` makes .venv; then `source .venv/bin/activate`")


def refuse(sentence: str) -> NoReturn:
    """Say what is wrong and exit; a hostile file name must not control the terminal."""
    complain(f"error: {printable(sentence.strip())}")
    sys.exit(WRONG)
