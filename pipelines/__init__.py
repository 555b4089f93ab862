"""The commands: `python -m pipelines.<name>`. Flags, wiring, exit codes and the last printed lines."""

import logging
import os
import signal
import sys
import tempfile

from pipelines.terminal import complain, on_signals, open_streams

if sys.argv[:1] == ["-m"]:  # this package is a command that is being started, which takes a second or two

    def _end(number, _):
        complain(f"\nended by {signal.Signals(number).name}; nothing was started")
        os._exit(1)

    open_streams()
    on_signals(_end)

try:
    tempfile.gettempdir()  # which Beam asks for at import
except FileNotFoundError:
    complain("error: there is no temporary folder that can be written to; set TMPDIR to a folder with room")
    raise SystemExit(2) from None

# Without Google's client Beam warns at import of a library that nobody asked for; a user takes it for a fault.
logging.disable(logging.WARNING)
try:
    import apache_beam  # noqa: F401
except ModuleNotFoundError:
    raise SystemExit(
        "apache_beam is not installed here: `make demo` makes .venv; then `source .venv/bin/activate`"
    ) from None

logging.disable(logging.NOTSET)
