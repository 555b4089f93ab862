"""Turn all captions of a batch, as `--captions all` asks for them, into one row per caption, and into rejects."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_transforms.engine.forward import ForwardedBatch
from clip_transforms.engine.stored import NOT_FINITE, cosines, in_stored_precision, lists
from schemas.rejects import FURTHER_CAPTIONS
from schemas.samples import ALL_CAPTIONS, NUM_CAPTIONS


class Reject(NamedTuple):
    """A modality of a sample that could not be embedded; `row` is its place in the batch."""

    row: int
    modality: str
    stage: str
    reason: str
    message: str
    num_bytes: int | None


@dataclasses.dataclass(frozen=True)
class AllCaptions:
    """All captions of a batch.

    Attributes:
        rows: rows of the captions schema, one per embedded caption, ordered by sample and then by `caption_index`.
        rejected: `<stage>: <reason>` → number of captions.
        rejects: one for each sample of whose further captions some could not be embedded.
    """

    rows: pa.RecordBatch
    rejected: Counter
    rejects: list[Reject]


def finish_captions(
    batch: ForwardedBatch,
    shard: str,
    images: tuple[np.ndarray, np.ndarray],
    first_rejects: Sequence[Reject],
    schema: pa.Schema,
) -> AllCaptions:
    """Turn the embedded captions of a batch into rows and rejects.

    Args:
        batch: the embedded batch; its samples have ALL_CAPTIONS.
        shard: the name of the batch's shard.
        images: the stored image embeddings [m, d], and for each sample its row there, or -1.
        first_rejects: the rejects of the samples' first captions.
        schema: the captions schema; its embedding type decides the stored precision.
    """
    decoded, embedded = batch.decoded, batch.captions
    places = [*((row, 0) for row in decoded.caption_rows), *decoded.further]
    finite = np.isfinite(embedded.embeddings).all(axis=1)
    order = [place for place in sorted(range(len(places)), key=places.__getitem__) if finite[place]]
    rows = np.array([places[place][0] for place in order], int)
    indices = [places[place][1] for place in order]
    captions = decoded.samples.column(ALL_CAPTIONS).to_pylist()
    keys = decoded.samples.select(["key", "row"]).take(pa.array(rows, pa.int64()))
    stored = in_stored_precision(embedded.embeddings[order], schema.field("caption_embedding"))
    columns = {
        "key": keys.column("key"),
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows)), pa.int32()), [shard]),
        "row": keys.column("row"),
        "caption_index": pa.array(indices, pa.int32()),
        "caption": pa.array([captions[row][i]["caption"] for row, i in zip(rows, indices, strict=True)], pa.string()),
        "caption_tokens": pa.array(decoded.tokens.lengths[order], pa.int16()),
        "caption_truncated": pa.array(decoded.tokens.truncated[order], pa.bool_()),
        "caption_embedding": lists(stored),
        "clip_score": _clip_scores(stored, rows, *images),
    }
    lost = _lost_of_each(batch, places, finite, captions)
    rejected = Counter(f"{reject.stage}: {reject.reason}" for reject in first_rejects)
    for of_sample in lost.values():
        for reject, count in of_sample:
            rejected[f"{reject.stage}: {reject.reason}"] += count
    return AllCaptions(
        pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema),
        rejected,
        [_one_reject(of_sample, batch.decoded.samples) for _, of_sample in sorted(lost.items())],
    )


def _clip_scores(captions: np.ndarray, rows: np.ndarray, images: np.ndarray, image_of: np.ndarray) -> pa.Array:
    """Return the cosine of each caption with its sample's image, as stored; null if there is no such embedding."""
    has_image = image_of[rows] >= 0
    scores = np.zeros(len(rows), np.float32)
    scores[has_image] = cosines(images[image_of[rows[has_image]]], captions[has_image])
    return pa.array(scores, mask=~has_image)


def _lost_of_each(
    batch: ForwardedBatch, places: Sequence[tuple[int, int]], finite: np.ndarray, captions: Sequence[list | None]
) -> dict[int, list[tuple[Reject, int]]]:
    """Return row → (reject, number of captions) of the further captions that were not embedded, in their order.

    The message of each reject begins with the `caption_index`.
    """
    found: defaultdict[int, list[tuple[int, Reject, int]]] = defaultdict(list)

    def add(row: int, index: int, stage: str, reason: str, message: str, num_bytes: int | None, count: int = 1) -> None:
        message = f"caption_index {index}: {message}"
        found[row].append((index, Reject(row, FURTHER_CAPTIONS, stage, reason, message, num_bytes), count))

    offered = batch.decoded.samples.column(NUM_CAPTIONS).to_pylist()
    for row, entries in enumerate(captions):
        for index, entry in enumerate(entries or ()):
            if index and (reject := entry["reject"]):
                add(row, index, "read", reject["reason"], reject["message"], reject["num_bytes"])
        if entries and (more := offered[row] - len(entries)):
            message = f"a sample may have at most {len(entries):,} captions"
            add(row, len(entries), "read", "too many captions", message, None, more)
    for place, (row, index) in enumerate(places):
        if index and not finite[place]:
            add(row, index, "embed", *NOT_FINITE, None)
    return {row: [(reject, count) for _, reject, count in sorted(of_row)] for row, of_row in found.items()}


def _one_reject(lost: Sequence[tuple[Reject, int]], samples: pa.RecordBatch) -> Reject:
    """Return the one reject that stands for all further captions of a sample; it has the reason of the first."""
    first = lost[0][0]
    total = samples.column(NUM_CAPTIONS)[first.row].as_py()
    message = f"{sum(count for _, count in lost):,} of {total:,} captions; the first is {first.message}"
    return first._replace(message=message)
