"""How well scores rank the samples of one class above all others, where a sample may have several classes."""

from __future__ import annotations

import numpy as np

_POINTS = 10  # recall 0, 0.1, … 1


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Return the average precision: the sum over the scores t of (recall(t) - recall(before t)) · precision(t).

    It is scikit-learn's `average_precision_score`, in which equal scores are one step. CLIP_benchmark breaks ties by
    the order of the samples; without ties, it gives the same.

    Args:
        scores: float32 [n], larger is better.
        truth: bool [n], whether a sample has the class.
    Returns:
        0 to 1; None if no sample has the class.
    """
    from sklearn.metrics import average_precision_score  # takes seconds to import, and not every command needs it

    return float(average_precision_score(truth, scores)) if truth.any() else None


def eleven_point_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Return the interpolated average precision at eleven recalls, as VOC 2007 defines it.

    It is the mean over j = 0, …, 10 of the largest precision at any recall of at least j / 10 (Everingham et al. 2010,
    "The Pascal Visual Object Classes Challenge", section 4.2.1). The recalls are compared as integers, 10 · hits ≥
    j · positives, since tenths are not exact in binary. Equal scores are one step.

    Args:
        scores: float32 [n], larger is better.
        truth: bool [n], whether a sample has the class.
    Returns:
        0 to 1; None if no sample has the class.
    """
    if not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of each run of equal scores
    hits = np.cumsum(truth[order])[last].astype(np.int64)
    precision = hits / (last + 1)
    # All the hits lie at the last step, so each of the recalls is reached.
    return float(np.mean([precision[_POINTS * hits >= j * hits[-1]].max() for j in range(_POINTS + 1)]))


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Return the area under the ROC curve, scikit-learn's `roc_auc_score`.

    It is the chance that a sample of the class has a better score than one of the others, equal scores counting half.

    Args:
        scores: float32 [n], larger is better.
        truth: bool [n], whether a sample has the class.
    Returns:
        0 to 1; None unless some samples have the class and some have not.
    """
    from sklearn.metrics import roc_auc_score  # as above

    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else None
