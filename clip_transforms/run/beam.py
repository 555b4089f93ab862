"""Apache Beam: `from clip_transforms.run.beam import beam`. Everything of ours that needs Beam imports it from here.

At its import, Beam warns of Google's client libraries, which nobody asked for.
"""

from __future__ import annotations

import logging

_before = logging.root.manager.disable
logging.disable(max(_before, logging.WARNING))
try:
    import apache_beam as beam  # noqa: F401
    from apache_beam.transforms.resources import parse_resource_hints  # noqa: F401
    from apache_beam.utils.shared import Shared  # noqa: F401
finally:
    logging.disable(_before)
