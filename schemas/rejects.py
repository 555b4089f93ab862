"""Define the rejects: one row per modality that the source offers for a sample and that could not be embedded."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import SHARD, described

# The modality of a reject that stands for all captions of a sample after its first that could not be embedded.
FURTHER_CAPTIONS = "captions"
# All (stage, reason) pairs, with their meanings; the list is closed.
REASONS: dict[tuple[str, str], str] = {
    ("read", "several images"): "a tar offers several images under one key",
    ("read", "image too large"): "the encoded image has more bytes than --max_image_bytes",
    ("read", "caption too large"): "the caption has more bytes than --max_caption_bytes",
    ("read", "too many captions"): "with --captions all, the sample has more than 1,000 captions",
    ("read", "not UTF-8"): "the caption's bytes are not UTF-8",
    ("read", "not text"): "the caption's, or in a listing the URI's, JSON value is not a string",
    ("read", "malformed row"): "a row of a listing cannot be told apart into its fields",
    ("read", "not allowed"): "a listing's URI points outside its folder and what --allow_uri permits",
    ("read", "not fetched"): "a listing's URI cannot be fetched",
    ("read", "vanished"): "a file that the plan knows is gone (modality shard: the shard itself)",
    ("read", "unreadable"): "a file or a tar's member cannot be read (modality shard: the shard, from some place on)",
    ("decode", "empty"): "the image has no bytes",
    (
        "decode",
        "unknown format",
    ): "the bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF (with the extra [heic]: nor HEIC)",
    ("decode", "too many pixels"): "the stored or the resized picture is larger than --max_image_pixels",
    ("decode", "truncated"): "the file ends early",
    ("decode", "damaged"): "the format is known, but its decoder failed on the bytes",
    ("embed", "out of memory"): "the device had no memory for this sample (version 0.1.0; now this ends the run)",
    ("embed", "not finite"): "the model gave an embedding that is not finite",
}


def rejects_schema() -> pa.Schema:
    """Return the schema of `out/rejects/*.parquet`; (`shard`, `row`, `modality`) is unique."""
    return pa.schema(
        [
            described("key", pa.string(), "name of the sample; null for a whole shard"),
            SHARD,
            described("row", pa.int64(), "place in the shard; null for a whole shard"),
            described("modality", pa.string(), "image, caption or shard", False),
            described("stage", pa.string(), "read, decode, tokenize or embed", False),
            described("reason", pa.string(), "one of a closed list", False),
            described("message", pa.string(), "what the failing step said", False),
            described("num_bytes", pa.int64(), "size of what was rejected, where known"),
        ]
    )
