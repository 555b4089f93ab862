"""Rows of a part → the counts that a report shows. All of them are whole numbers, so sums depend on no order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Counts = Counter  # of tuples: the kind, then what is counted

COLUMNS = ("row", "clip_score", "width", "height", "caption_tokens", "caption_truncated")
SURE = 0.9  # from this probability on, a label counts as sure
# Lower bounds of the bins of a picture's shorter side, in pixels.
SIDES = (1, 32, 64, 128, 224, 336, 512, 768, 1024, 1536, 2048, 4096)
THOUSANDTHS = np.arange(-1000, 1001)
# Thresholds are float32, as `filter` takes them, so that what a threshold keeps is exact.
_THRESHOLDS = (THOUSANDTHS / 1000).astype(np.float32)


def label_columns(taxonomies: Sequence[str]) -> list[str]:
    """Return the columns of labels that are counted."""
    return [f"{taxonomy}.{name}" for taxonomy in taxonomies for name in ("label", "probability")]


def count_rows(table: pa.Table, taxonomies: Sequence[str], side: int) -> Counts:
    """Count the rows of a part.

    Args:
        table: COLUMNS and `label_columns`, n rows.
        taxonomies: names of the taxonomies.
        side: image side of the model in pixels, 0 if it is not known.
    Returns:
        ("rows",); ("score", m) with m the largest thousandth that is at most the score; ("no score",);
        ("side", lower bound of the bin); ("enlarged",), pictures whose shorter side is less than `side`;
        ("tokens", number); ("truncated",); ("label", taxonomy, class) and ("sure", taxonomy, class).
    """
    counts = Counter({("rows",): table.num_rows})
    scores = table.column("clip_score").cast(pa.float32()).to_numpy()
    scores = scores[~np.isnan(scores)]  # nulls too
    _add(counts, "score", THOUSANDTHS[thousandths(scores)])
    counts["no score",] = table.num_rows - len(scores)
    sides = pc.min_element_wise(table.column("width"), table.column("height")).drop_null().to_numpy()
    _add(counts, "side", np.array(SIDES)[np.searchsorted(SIDES[1:], sides, side="right")])
    counts["enlarged",] = int((sides < side).sum())
    _add(counts, "tokens", table.column("caption_tokens").drop_null().to_numpy())
    counts["truncated",] = pc.sum(table.column("caption_truncated")).as_py() or 0
    for taxonomy in taxonomies:
        labels, sure = (
            table.column(f"{taxonomy}.label"),
            pc.greater_equal(table.column(f"{taxonomy}.probability"), SURE),
        )
        _count_labels(counts, "label", taxonomy, labels)
        _count_labels(counts, "sure", taxonomy, labels.filter(pc.fill_null(sure, False)))
    return +counts


def thousandths(scores: np.ndarray) -> np.ndarray:
    """Return the place in THOUSANDTHS of the largest that is at most a score; float32 [n] → int64 [n]."""
    return np.maximum(np.searchsorted(_THRESHOLDS, scores, side="right") - 1, 0)


def _add(counts: Counts, kind: str, values: np.ndarray) -> None:
    found, numbers = np.unique(values, return_counts=True)
    for value, number in zip(found.tolist(), numbers.tolist(), strict=True):
        counts[kind, value] += number


def _count_labels(counts: Counts, kind: str, taxonomy: str, labels: pa.ChunkedArray) -> None:
    for one in pc.value_counts(labels.cast(pa.string()).drop_null()).to_pylist():
        counts[kind, taxonomy, one["values"]] += one["counts"]


def count_rejects(table: pa.Table) -> Counts:
    """Count the rejects of a part: ("reject", modality, stage, reason)."""
    names = ("modality", "stage", "reason")
    return Counter(("reject", *row) for row in zip(*(table.column(name).to_pylist() for name in names), strict=True))


def of_kind(counts: Counts, *kind: str) -> Counter:
    """Return the counts whose names begin so, without that beginning; a name of one value is that value."""
    found = {name[len(kind) :]: number for name, number in counts.items() if name[: len(kind)] == kind}
    return Counter({name[0] if len(name) == 1 else name: number for name, number in found.items()})


def most_frequent(counts: Counts, taxonomy: str) -> list[str]:
    """Return the classes of a taxonomy, the most frequent first, then by name."""
    found = of_kind(counts, "label", taxonomy)
    return sorted(found, key=lambda name: (-found[name], name))
