"""The commands: `python -m pipelines.<name>`. Flags, wiring, exit codes and the last printed lines."""

import logging

# Without Google's client Beam warns at import of a library that nobody asked for; a user takes it for a fault.
logging.disable(logging.WARNING)
import apache_beam  # noqa: E402, F401

logging.disable(logging.NOTSET)
