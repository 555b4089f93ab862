"""Define the embeddings: one row per sample with at least one embedding, in input order."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from schemas.samples import Column, samples_schema

EMBEDDING_DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
EMBEDDINGS = ("image_embedding", "caption_embedding")


def described(name: str, type_: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    """Return a field whose description is stored in the file."""
    return pa.field(name, type_, nullable, {"description": description})


SHARD = described("shard", pa.dictionary(pa.int32(), pa.string()), "URI of the shard that the sample came from", False)
ROW = described("row", pa.int64(), "place in the shard; (shard, row) is unique", False)
KEY = described("key", pa.string(), "name of the sample; need not be unique", False)


def embeddings_schema(embedding_dtype: str = "float32", columns: Iterable[Column] = ()) -> pa.Schema:
    """Return the schema of `out/embeddings/*.parquet`.

    Args:
        embedding_dtype: `float32` or `float16`.
        columns: the user's own columns; they come before `metadata`.
    """
    # A plain list: pyarrow up to 25 cannot read a null FixedSizeList back, and Spark knows only lists.
    embedding = pa.list_(EMBEDDING_DTYPES[embedding_dtype])
    return pa.schema(
        [
            KEY,
            SHARD,
            ROW,
            described("caption", pa.string(), "as given; null where there is none or it was rejected"),
            described("caption_tokens", pa.int16(), "tokens after the cut, 2 to 77, start and end included"),
            described("caption_truncated", pa.bool_(), "whether the caption was cut to the context length"),
            described("width", pa.int32(), "of the stored image, in pixels"),
            described("height", pa.int32(), "of the stored image, in pixels"),
            described("image_sha256", pa.string(), "hex SHA-256 of the encoded image"),
            described("image_embedding", embedding, "d values of length 1; null without a usable image"),
            described("caption_embedding", embedding, "d values of length 1; null without a usable caption"),
            described("clip_score", pa.float32(), "cosine of both embeddings as stored, -1 to 1; null without both"),
            *(described(c.name, c.arrow_type, f"--columns {c.name}={c.field}:{c.type}") for c in columns),
            described("metadata", pa.string(), "JSON that came with the sample"),
        ]
    )


def reserved_names() -> frozenset[str]:
    """Return the names that a user's column may not have, in upper or lower case."""
    return frozenset(embeddings_schema().names) | frozenset(samples_schema().names)
