"""Define the zero-shot labels of one taxonomy: the same rows as the embeddings part of that name, in the same order."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described

TOP_LABEL = pa.struct([("label", pa.string()), ("probability", pa.float32()), ("similarity", pa.float32())])


def labels_schema() -> pa.Schema:
    """Return the schema of `out/labels/<taxonomy>/*.parquet`; label columns are null without an image embedding."""
    return pa.schema(
        [
            KEY,
            SHARD,
            ROW,
            described("label", pa.dictionary(pa.int32(), pa.string()), "the class with the largest cosine"),
            described("probability", pa.float32(), "its share of the softmax over the taxonomy, 0 to 1"),
            described("similarity", pa.float32(), "its cosine with the image, -1 to 1"),
            described("margin", pa.float32(), "its cosine less the runner-up's; null in a taxonomy of one class"),
            described("top", pa.list_(TOP_LABEL), "the best classes, best first, as many as --top_labels"),
        ]
    )
