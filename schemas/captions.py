"""Define all captions of the samples, as `--captions all` writes them: one row per embedded caption, in input order."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import EMBEDDING_DTYPES, KEY, SHARD, described


def captions_schema(embedding_dtype: str = "float32") -> pa.Schema:
    """Return the schema of `out/captions/*.parquet`; (`shard`, `row`, `caption_index`) is unique.

    Args:
        embedding_dtype: `float32` or `float16`.
    """
    return pa.schema(
        [
            KEY,
            SHARD,
            described("row", pa.int64(), "place of the sample in the shard", False),
            described("caption_index", pa.int32(), "place among the sample's captions, 0 for the first", False),
            described("caption", pa.string(), "as given", False),
            described("caption_tokens", pa.int16(), "tokens after the cut, 2 to 77, start and end included", False),
            described("caption_truncated", pa.bool_(), "whether the caption was cut to the context length", False),
            described("caption_embedding", pa.list_(EMBEDDING_DTYPES[embedding_dtype]), "d values of length 1", False),
            described(
                "clip_score", pa.float32(), "cosine with the image embedding, both as stored; null without an image"
            ),
        ]
    )
