"""Define the files in `_footers/`: what the parts of a dataset on an object store say of themselves, kept together."""

from __future__ import annotations

import pyarrow as pa

KEPT_FOOTERS = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),  # size and etag of the part when its footer was read
        pa.field("footer", pa.binary(), nullable=False),  # JSON, as it stands in the part; see schemas/provenance.py
    ]
)
