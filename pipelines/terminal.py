"""The standard streams, signals and logs of a command, in whatever state a shell or scheduler left them."""

from __future__ import annotations

import collections
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

_LOUD = ("warning: ", "not complete: ")  # lines that `--quiet` prints all the same
DROPPED: collections.deque[str] = collections.deque(maxlen=20)  # the last errors that were logged and not shown
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def open_streams() -> None:
    """Open /dev/null in place of a closed standard stream; otherwise printed text would go into the next opened file.

    Also escape the characters that the terminal's encoding lacks.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
    sys.stdout, sys.stderr = (file or open(os.devnull, "w") for file in (sys.stdout, sys.stderr))
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


class _Manner:
    """How a command talks.

    Attributes:
        quiet: whether it says nothing but warnings and errors.
    """

    quiet = False


def be_quiet(quiet: bool) -> None:
    """Say from now on only what is a warning or an error, or say everything again."""
    _Manner.quiet = quiet


def is_quiet() -> bool:
    """Return whether only warnings and errors are said."""
    return _Manner.quiet


def say(line: str) -> None:
    """Print a line to stdout; from the first line on that nobody can read, print nothing more."""
    if is_quiet() and not line.startswith(_LOUD):
        return
    try:
        print(line, flush=True)
    except OSError:  # `| head -1`, or a closed terminal: no reason to end a run, and run.json has every number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """Escape what could control a terminal, since names come from data."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def complain(line: str) -> None:
    """Write a line to stderr. Unlike print, this is safe in a signal handler."""
    data = f"{line}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "backslashreplace")
    try:
        os.write(2, data)
    except OSError:
        return  # nobody can read it


def silence() -> None:
    """Drop whatever this process and its children print from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def on_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Let a function handle Ctrl-C, SIGTERM and SIGHUP, but for those that are ignored, as under nohup.

    Returns:
        The previous handlers by signal.
    """
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def plain_logs() -> None:
    """Log in the form `warning: …`. Take the message out of a worker's record, which Beam passes on as a protobuf."""
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(format="%(levelname)s: %(message)s", force=True)  # Beam configured it at import
    for handler in logging.getLogger().handlers:
        handler.addFilter(_only_message)
        if not tracebacks_are_wanted():
            handler.addFilter(_no_error_of_beam)


def plain_threads() -> None:
    """Print no traceback of a thread of Beam's or gRPC's. It may die after the run, as when a job service hangs up."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if tracebacks_are_wanted() or not is_of_beam(args.exc_traceback):
            before(args)

    threading.excepthook = hook


def is_of_beam(trace: TracebackType | None) -> bool:
    """Return whether an error came out of Beam or gRPC."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]
    return any(name.partition(".")[0] in ("apache_beam", "grpc") for name in names)


def tracebacks_are_wanted() -> bool:
    """Return whether the user asked for tracebacks. Otherwise an error is one line."""
    return bool(os.environ.get("CLIP_TRANSFORMS_TRACEBACK"))


def _no_error_of_beam(record: logging.LogRecord) -> bool:
    """Drop errors that Beam, gRPC or a job service log: the run then fails and says why in one line.

    Beam logs what a job service says, such as Flink's Java traceback, under no name of its own.
    """
    of_beam = record.name.partition(".")[0] in ("apache_beam", "grpc") or record.module == "portable_runner"
    if record.levelno < logging.ERROR or not of_beam:
        return True
    DROPPED.append(record.getMessage())
    return False


def _only_message(record: logging.LogRecord) -> bool:
    found = re.search(r'severity: .*?\smessage: "((?:[^"\\]|\\.)*)"', record.getMessage(), re.DOTALL)
    if found:
        from google.protobuf import text_encoding  # not part of the standard library

        record.msg, record.args = text_encoding.CUnescape(found[1]).decode("utf-8", "replace"), ()
    return True
