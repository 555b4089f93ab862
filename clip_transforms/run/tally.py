"""What `evaluate` counts of labels: tallies, which add up over parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms.evaluation.rows import Rows
from clip_transforms.evaluation.settings import GROUPS
from clip_transforms.evaluation.truth import codes_of
from clip_transforms.labels.batch import Classifier
from clip_transforms.metrics.single_label import Confusion
from clip_transforms.parts.counts import add

_ROWS = 1_024  # rows whose scores are computed at once, as labels are
_NAMED = 20  # values of the truth that are no class, of which so many are named
Group = str | None  # None for all rows without a group, and for all rows where there are no groups


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is counted in some rows. Tallies of the same taxonomies can be added up.

    Attributes:
        rows: `seen`, `not_selected`, `without_embedding`, `without_truth`, `unknown_truth` and `scored`; with groups
            also `without_group`.
        unknown: values of the truth that are no class, the first ones by name → number of rows.
        confusions: taxonomy → group → its confusion.
    """

    rows: Counter
    unknown: Counter
    confusions: Mapping[str, Mapping[Group, Confusion]]

    @classmethod
    def sum(cls, some: Iterable[Tally]) -> Tally:
        """Add up tallies, in any order."""
        tallies = list(some)
        found: dict[str, dict[Group, list[Confusion]]] = {}
        for tally in tallies:
            for taxonomy, groups in tally.confusions.items():
                for group, confusion in groups.items():
                    found.setdefault(taxonomy, {}).setdefault(group, []).append(confusion)
        return cls(
            add(tally.rows for tally in tallies),
            _first(add(tally.unknown for tally in tallies)),
            {
                name: {group: Confusion.sum(of[0].k, of) for group, of in groups.items()}
                for name, groups in found.items()
            },
        )

    def checked(self) -> Tally:
        """Return it, unless there are too many groups; see `check_groups`."""
        for groups in self.confusions.values():
            check_groups(groups)
        return self


def _first(counts: Mapping[str, int]) -> Counter:
    """Keep the first names. Their counts stay exact: a name that is among the first of all is so in every share."""
    return Counter(dict(sorted(counts.items())[:_NAMED]))


def scores_of(rows: Rows, classifier: Classifier) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the cosines of images with all classes: some places, and float32 [up to _ROWS, k]."""
    for start in range(0, len(rows.vectors), _ROWS):
        some = slice(start, start + _ROWS)
        yield some, rows.vectors[some] @ classifier.weights.T


def by_group(groups: list[Group] | None, n: int) -> dict[Group, np.ndarray]:
    """Return the places of the rows of each group; all n rows in one group if there are no groups.

    Raises:
        ValueError: if there are too many groups.
    """
    if groups is None:
        return {None: np.arange(n)}
    found: dict[Group, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    check_groups(found)
    return {group: np.array(places) for group, places in found.items()}


def check_groups(groups: Mapping[Group, Any]) -> None:
    """Refuse more groups than anybody can look at.

    Raises:
        ValueError: naming the limit.
    """
    if len(groups) > GROUPS + 1:
        raise ValueError(f"--group_column has more than {GROUPS} different values; give a column with fewer")


def tally_of(rows: Rows, classifiers: Mapping[str, Classifier]) -> Tally:
    """Count the labels of rows that have one right class each, or none that is known."""
    n = len(rows.vectors)
    truth = rows.truth if rows.truth is not None else pa.nulls(n, pa.string())
    codes = {name: codes_of(truth, of.names) for name, of in classifiers.items()}
    missing = np.asarray(truth.is_null())
    # Taxonomies are compared over the same rows: those whose class they all have.
    known = np.logical_and.reduce([codes[name] < len(of.names) for name, of in classifiers.items()])
    outside = ~known & ~missing
    counts = Counter(rows.counts)
    counts.update(without_truth=int(missing.sum()), unknown_truth=int(outside.sum()), scored=int(known.sum()))
    confusions = {
        name: _confusions(rows, of, np.where(known, codes[name], len(of.names))) for name, of in classifiers.items()
    }
    return Tally(counts, _first(Counter(truth.filter(pa.array(outside)).to_pylist())), confusions)


def _confusions(rows: Rows, classifier: Classifier, truth: np.ndarray) -> dict[Group, Confusion]:
    """Count the labels of each group; k in `truth` is a right class that is not known."""
    found: dict[Group, list[Confusion]] = {}
    for some, scores in scores_of(rows, classifier):
        groups = by_group(rows.groups and rows.groups[some], len(scores))
        for group, places in groups.items():
            found.setdefault(group, []).append(Confusion.of(scores[places], truth[some][places]))
    return {group: Confusion.sum(len(classifier.names), of) for group, of in found.items()}
