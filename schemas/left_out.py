"""Define the rows that an export left out because their pictures could not be read again."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described


def left_out_schema() -> pa.Schema:
    """Return the schema of `<export>/left_out.parquet`, in the dataset's order."""
    reason = "vanished, changed, unreadable, not allowed (see --allow_uri) or not fetched"
    return pa.schema([KEY, SHARD, ROW, described("reason", pa.string(), reason, False)])
