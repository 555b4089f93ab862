"""Define the results of a search: the rows that are nearest to each query, best first."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described

LABEL = pa.struct([("label", pa.string()), ("probability", pa.float32())])


def results_schema() -> pa.Schema:
    """Return the schema of `found/results.parquet`."""
    return pa.schema(
        [
            described(
                "query", pa.string(), "the text, the file of the picture, the key, or the place of the embedding"
            ),
            described("rank", pa.int32(), "1 for the nearest row of this query; equal rows by (shard, row)", False),
            described("similarity", pa.float32(), "cosine of the query and the row, -1 to 1", False),
            KEY,
            SHARD,
            ROW,
            described("caption", pa.string(), "of the row, if it has one"),
            described("labels", pa.map_(pa.string(), LABEL), "taxonomy → the label of the row and its probability"),
        ]
    )
