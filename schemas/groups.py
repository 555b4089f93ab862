"""Define the groups of duplicates: a row for each row of a dataset that has one."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described


def groups_schema() -> pa.Schema:
    """Return the schema of `groups/*.parquet`, sorted by group and then in the dataset's order."""
    return pa.schema(
        [
            described(
                "group", pa.int64(), "number of the group in these files; rows of one number are duplicates", False
            ),
            KEY,
            SHARD,
            ROW,
            described("kept", pa.bool_(), "whether the row stays", False),
            described("similarity", pa.float32(), "to the kept row, 1 for that row itself and for equal files", False),
        ]
    )
