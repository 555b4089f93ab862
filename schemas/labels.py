"""Define the zero-shot labels of one taxonomy: the same rows as the embeddings part of that name, in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemas.embeddings import KEY, ROW, SHARD, described

# The columns of a taxonomy, which are called `<taxonomy>.label` and so on where they stand beside those of the rows.
LABEL_COLUMNS = ("label", "probability", "similarity", "margin", "top")
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


def taken_names(columns: Sequence[str]) -> dict[str, str]:
    """Return the names that no taxonomy can have beside some columns: name in lower case → the column in its way."""
    taken: dict[str, str] = {}
    for column in columns:
        taxonomy, dot, field = column.rpartition(".")
        if dot and field.lower() in LABEL_COLUMNS:
            taken.setdefault(taxonomy.lower(), column)
    return taken | {column.lower(): column for column in columns}
