"""Accuracy and recall of samples that have one right class each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

TOP = 5  # acc5 is whether the right class is among so many


def places_of(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the place of the right class among all classes, 0 for the best; of equal scores the first class is better.

    Args:
        scores: float32 [n, k], larger is better.
        truth: int64 [n], the right classes, 0 to k - 1.
    Returns:
        int64 [n], 0 to k - 1.
    """
    right = np.take_along_axis(scores, truth[:, None], axis=1)
    before = np.arange(scores.shape[1]) < truth[:, None]
    return np.count_nonzero((scores > right) | ((scores == right) & before), axis=1)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How many samples of which class got which label. Confusions of the same classes can be added up.

    Only pairs that occur are held, so that thousands of classes take little memory.

    Attributes:
        k: number of classes.
        pairs: int64 [m], sorted: right class · k + label. Samples whose right class is not known have k for it.
        counts: int64 [m], number of samples of each pair.
        near: int64 [m], how many of these have the right class among the best TOP.
    """

    k: int
    pairs: np.ndarray
    counts: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray) -> Confusion:
        """Count the labels of samples. A label is the class with the best score, the first one of equal scores.

        Args:
            scores: float32 [n, k], larger is better.
            truth: int64 [n], the right classes, 0 to k - 1; k or more where it is not known.
        """
        k = scores.shape[1]
        known = truth < k
        near = np.zeros(len(truth), bool)
        near[known] = places_of(scores[known], truth[known]) < TOP
        return _added(k, np.minimum(truth, k) * k + scores.argmax(axis=1), np.ones(len(truth), np.int64), near)

    @classmethod
    def sum(cls, k: int, some: Iterable[Confusion]) -> Confusion:
        """Add up confusions of k classes, in any order."""
        some = [cls(k, *np.empty((3, 0), np.int64)), *some]
        joined = (np.concatenate([getattr(one, name) for one in some]) for name in ("pairs", "counts", "near"))
        return _added(k, *joined)

    @property
    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        return np.divmod(self.pairs, self.k)

    def rated(self) -> Confusion:
        """Return the confusion of the samples whose right class is known."""
        known = self.pairs < self.k * self.k
        return Confusion(self.k, self.pairs[known], self.counts[known], self.near[known])

    @property
    def samples(self) -> np.ndarray:
        """Samples of each right class, int64 [k]."""
        return self._count(self._classes[0])

    @property
    def labels(self) -> np.ndarray:
        """Samples that got each label, those whose right class is not known too, int64 [k]."""
        return self._count(self._classes[1])

    @property
    def hits(self) -> np.ndarray:
        """Samples of each class that got its label, int64 [k]."""
        truth, label = self._classes
        return self._count(np.where(truth == label, truth, self.k))

    def _count(self, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, self.counts, self.k + 1)[: self.k].astype(np.int64)

    def mean_per_class_recall(self) -> float | None:
        """Return the mean of hits / samples over the classes that have samples; None without any.

        It is CLIP_benchmark's `mean_per_class_recall`, scikit-learn's `balanced_accuracy_score`: classes without
        samples do not count, whether samples got their label or not.
        """
        some = self.samples > 0
        return float(np.mean(self.hits[some] / self.samples[some])) if some.any() else None


def _added(k: int, pairs: np.ndarray, counts: np.ndarray, near: np.ndarray) -> Confusion:
    """Add up the counts of equal pairs."""
    found, places = np.unique(pairs, return_inverse=True)
    sums = [np.bincount(places, values, len(found)).astype(np.int64) for values in (counts, near)]
    return Confusion(k, found.astype(np.int64), *sums)
