"""The standard streams and signals of a command, however the shell or a scheduler left them."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def open_streams() -> None:
    """Put /dev/null where a standard stream is closed, or the next file that is opened would receive what is printed.

    Also lets every character be printed, whatever the encoding of the terminal.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
    sys.stdout, sys.stderr = (file or open(os.devnull, "w") for file in (sys.stdout, sys.stderr))
    for file in (sys.stdout, sys.stderr):
        file.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line to stdout, where somebody listens."""
    try:
        print(line, flush=True)
    except OSError:  # `| head -1`, or a terminal that was closed: no reason to end a run, and run.json says it all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(line: str) -> None:
    """Write a line to stderr; from within a signal handler too, where print may not be used."""
    data = f"{line}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "backslashreplace")
    try:
        os.write(2, data)
    except OSError:
        return  # nobody is there to be told


def silence() -> None:
    """Drop whatever this process and its children print from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def on_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Let a function handle Ctrl-C, SIGTERM and SIGHUP; the handlers that were there.

    What is ignored stays ignored, as under nohup.
    """
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def plain_logs() -> None:
    """Log as `warning: …`, what a worker process says too, which Beam hands on as the text of a protobuf."""
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(format="%(levelname)s: %(message)s", force=True)  # Beam has configured it at import
    for handler in logging.getLogger().handlers:
        handler.addFilter(_only_message)
        if not tracebacks_are_wanted():
            handler.addFilter(_no_error_of_beam)


def tracebacks_are_wanted() -> bool:
    """Whether the user asked for tracebacks; without them an error is one line."""
    return bool(os.environ.get("CLIP_TRANSFORMS_TRACEBACK"))


def _no_error_of_beam(record: logging.LogRecord) -> bool:
    """Drop errors that Beam and gRPC log: the run fails with them, and says so itself."""
    return record.levelno < logging.ERROR or record.name.partition(".")[0] not in ("apache_beam", "grpc")


def _only_message(record: logging.LogRecord) -> bool:
    found = re.search(r'severity: .*?\smessage: "((?:[^"\\]|\\.)*)"', record.getMessage(), re.DOTALL)
    if found:
        from google.protobuf import text_encoding  # not at the top: it is not of the standard library

        record.msg, record.args = text_encoding.CUnescape(found[1]).decode("utf-8", "replace"), ()
    return True
