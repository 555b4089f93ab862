"""Turn embedded batches into rows, scores and rejects; every modality of every sample ends in exactly one place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clip_transforms.engine.calls import Embedded
from clip_transforms.engine.captions import AllCaptions, Reject, finish_captions
from clip_transforms.engine.decode import DecodedBatch
from clip_transforms.engine.forward import ForwardedBatch
from clip_transforms.engine.stored import NOT_FINITE, cosines, in_stored_precision, lists
from schemas.rejects import FURTHER_CAPTIONS, rejects_schema
from schemas.samples import IMAGE_URI, MODALITIES

# Rejects come in the order of their samples; within a sample in this one.
_ORDER = {modality: place for place, modality in enumerate((*MODALITIES, FURTHER_CAPTIONS))}
_HALVED = "times that a batch was halved, because it did not fit in the device's memory"
_OVERFLOWED = "times that a batch did not fit into the range of fp16 and was embedded again in fp32"


@dataclasses.dataclass(frozen=True)
class FinishedBatch:
    """The outcome of a batch.

    Attributes:
        rows: rows of the embeddings schema, one per sample with at least one embedding.
        rejects: rows of the rejects schema.
        absent: modality → the number of samples without it.
        notes: text → count, of events to report at the end of the run.
        captions: all captions of the samples; None without `--captions all`.
    """

    rows: pa.RecordBatch
    rejects: pa.RecordBatch
    absent: dict[str, int]
    notes: Counter
    captions: AllCaptions | None


def finish_batch(
    batch: ForwardedBatch, shard: str, schema: pa.Schema, captions_schema: pa.Schema | None = None
) -> FinishedBatch:
    """Turn an embedded batch into rows and rejects.

    Args:
        batch: the embedded batch.
        shard: the name of the batch's shard.
        schema: the embeddings schema; its embedding types decide the stored precision.
        captions_schema: the schema of all captions; None without `--captions all`.
    """
    image = _Modality("image", batch.images, batch.decoded.image_rows, batch.decoded, schema)
    first = batch.captions.first(len(batch.decoded.caption_rows))
    caption = _Modality("caption", first, batch.decoded.caption_rows, batch.decoded, schema)
    rows = _rows(batch.decoded, shard, image, caption, schema)
    rejects = [*image.rejects, *caption.rejects]
    captions = None
    if captions_schema is not None:
        captions = finish_captions(batch, shard, (image.stored, image.index), caption.rejects, captions_schema)
        rejects += captions.rejects
    notes = batch.decoded.notes + Counter()  # a sum of Counters drops zeros
    for embedded in (batch.images, batch.captions):
        notes += Counter({_HALVED: embedded.halved, _OVERFLOWED: embedded.overflowed})
    return FinishedBatch(
        rows,
        _rejects(batch.decoded.samples, shard, rejects),
        {modality.name: modality.absent for modality in (image, caption)},
        notes,
        captions,
    )


class _Modality:
    """One modality of a batch: its embeddings in the stored precision, its rejects, and the number absent."""

    def __init__(
        self,
        name: str,
        embedded: Embedded,
        places: Sequence[int],
        batch: DecodedBatch,
        schema: pa.Schema,
    ):
        embeddings = embedded.embeddings
        finite = np.isfinite(embeddings).all(axis=1)
        n = batch.samples.num_rows
        self.name = name
        self.stored = in_stored_precision(embeddings[finite], schema.field(f"{name}_embedding"))  # [m, d]
        self.index = np.full(n, -1)  # row in the batch → row in `stored`
        self.index[np.asarray(places, int)[finite]] = np.arange(len(self.stored))
        offered = np.zeros(n, bool)
        offered[[*places, *(reject[0] for reject in batch.rejects if name == "image")]] = True
        refused = batch.samples.column(f"{name}_reject")
        self.absent = int((~offered & ~refused.is_valid().to_numpy(zero_copy_only=False)).sum())
        self.rejects = [
            Reject(row, name, "read", reject["reason"], reject["message"], reject["num_bytes"])
            for row, reject in enumerate(refused.to_pylist())
            if reject is not None
        ]
        decoded = batch.rejects if name == "image" else []
        failed: list[tuple[int, str, str, str, int | None]] = [(reject[0], "decode", *reject[1:]) for reject in decoded]
        failed += [
            (row, "embed", *NOT_FINITE, None)
            for place, (row, ok) in enumerate(zip(places, finite, strict=True))
            if not ok
        ]
        uris = batch.samples.column(IMAGE_URI).to_pylist() if failed and name == "image" else [None] * n
        self.rejects += [
            Reject(row, name, stage, reason, f"{uris[row]}: {message}" if uris[row] else message, num_bytes)
            for row, stage, reason, message, num_bytes in failed
        ]

    def column(self, kept: np.ndarray) -> pa.Array:
        """Return the embedding of each kept row, or null if it has none."""
        embeddings = lists(self.stored)
        if len(kept) == len(embeddings):  # each kept row has one, and both are in the order of the rows
            return embeddings
        return embeddings.take(pa.array(self.index[kept], pa.int64(), mask=self.index[kept] < 0))


def _rows(batch: DecodedBatch, shard: str, image: _Modality, caption: _Modality, schema: pa.Schema) -> pa.RecordBatch:
    kept = np.flatnonzero((image.index >= 0) | (caption.index >= 0))
    rows = kept.tolist()
    whole = len(kept) == batch.samples.num_rows
    samples = batch.samples if whole else batch.samples.take(pa.array(kept, pa.int64()))
    sizes = dict(zip(batch.image_rows, batch.sizes, strict=True))
    firsts = len(batch.caption_rows)  # the tokens of further captions follow
    lengths = dict(zip(batch.caption_rows, batch.tokens.lengths[:firsts].tolist(), strict=True))
    cut = dict(zip(batch.caption_rows, batch.tokens.truncated[:firsts].tolist(), strict=True))
    width, height = ([sizes.get(row, (None, None))[axis] for row in rows] for axis in (0, 1))
    columns = {
        **{name: samples.column(name) for name in schema.names if name in samples.schema.names},
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(kept)), pa.int32()), [shard]),
        "caption_tokens": pa.array([lengths.get(row) for row in rows], pa.int16()),
        "caption_truncated": pa.array([cut.get(row) for row in rows], pa.bool_()),
        "width": pa.array(width, pa.int32()),
        "height": pa.array(height, pa.int32()),
        "image_sha256": pa.array([batch.sha256[row] for row in rows], pa.string()),
        "image_embedding": image.column(kept),
        "caption_embedding": caption.column(kept),
        "clip_score": _clip_scores(image, caption, kept),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _clip_scores(image: _Modality, caption: _Modality, kept: np.ndarray) -> pa.Array:
    """Return the cosine of each row's two stored embeddings, in float32; null if either is missing."""
    both = (image.index[kept] >= 0) & (caption.index[kept] >= 0)
    scores = np.zeros(len(kept), np.float32)
    scores[both] = cosines(image.stored[image.index[kept][both]], caption.stored[caption.index[kept][both]])
    return pa.array(scores, mask=~both)


def _rejects(samples: pa.RecordBatch, shard: str, rejects: list[Reject]) -> pa.RecordBatch:
    rejects = sorted(rejects, key=lambda reject: (reject.row, _ORDER[reject.modality]))
    places = pa.array([reject.row for reject in rejects], pa.int64())
    named = {
        "key": samples.column("key").take(places),
        "shard": pa.DictionaryArray.from_arrays(pa.array([0] * len(rejects), pa.int32()), [shard]),
        "row": samples.column("row").take(places),
    }
    for name in ("modality", "stage", "reason", "message"):
        named[name] = pa.array([getattr(reject, name) for reject in rejects], pa.string())
    named["num_bytes"] = pa.array([reject.num_bytes for reject in rejects], pa.int64())
    schema = rejects_schema()
    return pa.RecordBatch.from_arrays([named[name] for name in schema.names], schema=schema)


def shard_reject(shard: str, reason: str, message: str) -> pa.RecordBatch:
    """Make the single reject row of a shard that could not be read, or not to its end."""
    row = {"key": None, "shard": shard, "row": None, "modality": "shard", "stage": "read", "reason": reason}
    return pa.RecordBatch.from_pylist([{**row, "message": message, "num_bytes": None}], schema=rejects_schema())
