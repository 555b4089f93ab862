"""Compute zero-shot labels from stored image embeddings, with one function for both `embed` and `label`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from schemas.labels import TOP_LABEL, labels_schema


@dataclasses.dataclass(frozen=True)
class Classifier:
    """An embedded taxonomy.

    Attributes:
        names: the names of the k classes.
        weights: float32 [k, d]; every row has length 1.
        scale: exp(logit_scale), the factor that turns a cosine into a logit.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    scale: float


def label_batch(rows: pa.RecordBatch, classifier: Classifier, top_labels: int) -> pa.RecordBatch:
    """Label a batch of rows.

    Args:
        rows: rows of the embeddings schema.
        classifier: the embedded classes.
        top_labels: the length of `top`; at most k classes are listed.
    Returns:
        Rows of the labels schema, one for each input row in the same order; null if there is no image embedding.
    """
    schema = labels_schema()
    stored = rows.column("image_embedding")
    valid = np.flatnonzero(stored.is_valid().to_numpy(zero_copy_only=False))
    keys = [rows.column(name) for name in ("key", "shard", "row")]
    if len(valid) == 0:
        return pa.RecordBatch.from_arrays(
            [*keys, *(pa.nulls(len(rows), f.type) for f in list(schema)[3:])], schema=schema
        )
    embeddings = stored.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(valid), -1)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = embeddings @ classifier.weights.T  # [m, k]
    logits = classifier.scale * (cosines - cosines.max(axis=1, keepdims=True))
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    k = cosines.shape[1]
    best = _largest(cosines, min(k, max(2, top_labels)))
    top = best[:, : min(k, top_labels)]
    similarity = np.take_along_axis(cosines, best, axis=1)
    margin = similarity[:, 0] - similarity[:, 1] if k > 1 else None
    names = pa.array(classifier.names, pa.string())
    structs = pa.StructArray.from_arrays(
        [
            names.take(pa.array(top.ravel())),
            pa.array(np.take_along_axis(probabilities, top, axis=1).ravel()),
            pa.array(similarity[:, : top.shape[1]].ravel()),
        ],
        fields=list(TOP_LABEL),
    )
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(best[:, 0], pa.int32()), names),
        pa.array(np.take_along_axis(probabilities, best[:, :1], axis=1)[:, 0]),
        pa.array(similarity[:, 0]),
        pa.nulls(len(valid), pa.float32()) if margin is None else pa.array(margin),
        pa.ListArray.from_arrays(pa.array(np.arange(len(valid) + 1) * top.shape[1], pa.int32()), structs),
    ]
    places = np.full(len(rows), -1)
    places[valid] = np.arange(len(valid))
    take = pa.array(places, pa.int64(), mask=places < 0)
    return pa.RecordBatch.from_arrays([*keys, *(column.take(take) for column in columns)], schema=schema)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values in each row, largest first."""
    if count < values.shape[1]:
        # This is O(k) instead of O(k log k), a visible difference with thousands of classes.
        rough = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    else:
        rough = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, rough, axis=1), axis=1, kind="stable")
    return np.take_along_axis(rough, order, axis=1)
