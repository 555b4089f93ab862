"""The steps of `evaluate` that compare images with classes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clip_transforms.evaluation.rows import Rows
from clip_transforms.evaluation.settings import GROUPS
from clip_transforms.evaluation.truth import codes_of, flags_of
from clip_transforms.labels.batch import Classifier
from clip_transforms.metrics.multi_label import average_precision, eleven_point_precision, roc_auc
from clip_transforms.metrics.single_label import Confusion
from clip_transforms.parts.counts import add
from clip_transforms.run.evaluate_steps import Evaluating, OverRuns, Run, State
from clip_transforms.run.over_parts import Step
from clip_transforms.select.bucket_file import read_bucket, read_bytes, read_ends, read_note, write_buckets

_ROWS = 1_024  # rows whose scores are computed at once, as labels are
_UNKNOWN = 20  # values of the truth that are no class, of which so many are named
_SCORES = 128 << 20  # bytes of scores that one task brings together
_SCORE = np.dtype([("score", "<f4"), ("truth", "?")])
Group = str | None  # None for all rows without a group, and for all rows where there are no groups


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is counted in some rows. Tallies of the same taxonomies can be added up.

    Attributes:
        rows: `seen`, `not_selected`, `without_embedding`, `without_truth`, `unknown_truth` and `scored`.
        unknown: values of the truth that are no class → number of rows.
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
            add(tally.unknown for tally in tallies),
            {
                name: {group: Confusion.sum(of[0].k, of) for group, of in groups.items()}
                for name, groups in found.items()
            },
        )


def scores_of(rows: Rows, classifier: Classifier) -> Iterator[np.ndarray]:
    """Yield the cosines of images with all classes, float32 [up to _ROWS, k]."""
    for start in range(0, len(rows.vectors), _ROWS):
        yield rows.vectors[start : start + _ROWS] @ classifier.weights.T


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


class _Count(OverRuns):
    """Run of parts → its tally."""

    def do(self, item: Run) -> Tally:
        classifiers = self.run.classifiers()
        return Tally.sum(_tally(self.run.read(part), classifiers) for part in item[1])

    def add(self, summaries: Iterable[Tally]) -> Tally:
        tally = Tally.sum(summaries)
        for groups in tally.confusions.values():
            check_groups(groups)
        return tally

    def after(self, state: State, total: Tally) -> dict[str, Any]:
        return {**state, "zeroshot": total}


def _tally(rows: Rows, classifiers: Mapping[str, Classifier]) -> Tally:
    """Count the labels of rows with one right class each, or none that is known."""
    n = len(rows.vectors)
    counts, unknown, known = Counter(rows.counts), Counter[str](), np.zeros(n, bool)
    if rows.truth is not None:
        codes = {name: codes_of(rows.truth, of.names) for name, of in classifiers.items()}
        missing = np.asarray(rows.truth.is_null())
        # Taxonomies are compared over the same rows.
        known = np.logical_and.reduce([codes[name] < len(of.names) for name, of in classifiers.items()])
        unknown.update(rows.truth.take(np.flatnonzero(~known & ~missing)).to_pylist())
        counts.update(without_truth=int(missing.sum()), unknown_truth=int((~known & ~missing).sum()))
    else:
        counts["without_truth"] += n
    counts["scored"] += int(known.sum())
    confusions = {}
    for name, of in classifiers.items():
        truth = np.where(known, codes[name], len(of.names)) if known.any() else np.full(n, len(of.names))
        scores = np.concatenate([np.empty((0, len(of.names)), np.float32), *scores_of(rows, of)])
        groups = by_group(rows.groups, n)
        confusions[name] = {group: Confusion.of(scores[places], truth[places]) for group, places in groups.items()}
    return Tally(counts, unknown, confusions)


class _WriteScores(OverRuns):
    """Run of parts → scores and truth of its rows, class by class, in a file for each taxonomy; and its tally.

    The file of a run has a bucket for each class, and one with the group of each row.
    """

    def do(self, item: Run) -> Tally:
        number, parts = item
        classifiers, all_rows = self.run.classifiers(), [self.run.read(part) for part in parts]
        tallies = []
        for rows in all_rows:
            truth, n = rows.truth, len(rows.vectors)
            assert truth is not None
            labels = _tally(dataclasses.replace(rows, truth=None), classifiers)
            missing = int(truth.null_count)
            counted = Counter({**labels.rows, "without_truth": missing, "scored": n - missing})
            tallies.append(dataclasses.replace(labels, rows=counted))
        for name, of in classifiers.items():
            records, groups, unknown = [], [], Counter[str]()
            for rows in all_rows:
                found, own, others = _records(rows, of)
                records.append(found)
                groups += own
                unknown.update(others)
            joined, names = np.concatenate(records), sorted({group for group in groups if group is not None})
            codes = {group: code for code, group in enumerate(names)}
            numbers = np.array([codes.get(group, -1) if group is not None else -1 for group in groups], "<i4")
            uri, note = self.run.work("scores", name, number), {"groups": names}
            write_buckets(uri, [*np.ascontiguousarray(joined.T), numbers], self.run.folder, note)
            tallies.append(Tally(Counter(), unknown, {}))
        return Tally.sum(tallies)

    def add(self, summaries: Iterable[Tally]) -> Tally:
        return Tally.sum(summaries)

    def after(self, state: State, total: Tally) -> dict[str, Any]:
        return {**state, "zeroshot": total}


def _records(rows: Rows, classifier: Classifier) -> tuple[np.ndarray, list[Group], list[str]]:
    """Return scores and truth of the rows that have a truth, [m, k]; their groups; and values that are no class."""
    assert rows.truth is not None
    has = np.asarray(rows.truth.is_valid())
    flags, unknown = flags_of(rows.truth.filter(rows.truth.is_valid()), classifier.names)
    scores = np.concatenate([np.empty((0, len(classifier.names)), np.float32), *scores_of(rows, classifier)])
    records = np.empty(flags.shape, _SCORE)
    records["score"], records["truth"] = scores[has], flags
    groups = rows.groups if rows.groups is not None else [None] * len(has)
    return records, [group for group, one in zip(groups, has, strict=True) if one], unknown


# Class → group → positives, average precision, eleven-point precision, ROC AUC; the group "" is all rows.
Rankings = dict[int, dict[str, tuple[int, float | None, float | None, float | None]]]


@dataclasses.dataclass(frozen=True)
class _RateClasses(Step):
    """(Taxonomy, some classes) → how well their scores rank the samples."""

    run: Evaluating

    def items(self, state: State) -> Iterator[tuple[str, int, int]]:
        rows = max(1, state["zeroshot"].rows["scored"])
        at_once = max(1, _SCORES // (rows * _SCORE.itemsize))
        for of in self.run.classes:
            for first in range(0, len(of.names), at_once):
                yield of.name, first, min(first + at_once, len(of.names))

    def do(self, item: tuple[str, int, int]) -> dict[str, Rankings]:
        name, first, stop = item
        pieces, groups = [], []
        for uri in [self.run.work("scores", name, number) for number in range(self.run.runs)]:
            ends = read_ends(uri, first, stop)
            data = np.frombuffer(read_bytes(uri, int(ends[0]), int(ends[-1])), _SCORE)
            pieces.append(data.reshape(stop - first, -1))
            names = np.array([*(read_note(uri) or {})["groups"], None], object)
            k = len(next(of.names for of in self.run.classes if of.name == name))
            groups.append(names[np.frombuffer(read_bucket(uri, k), "<i4")])
        records, of_rows = np.concatenate(pieces, axis=1), np.concatenate(groups)
        masks = {group: of_rows == group for group in sorted({one for one in of_rows if one is not None})}
        return {name: {first + place: _rated(record, masks) for place, record in enumerate(records)}}

    def add(self, summaries: Iterable[dict[str, Rankings]]) -> dict[str, Rankings]:
        total: dict[str, Rankings] = {}
        for summary in summaries:
            for name, rankings in summary.items():
                total.setdefault(name, {}).update(rankings)
        return total

    def after(self, state: State, total: dict[str, Rankings]) -> dict[str, Any]:
        return {**state, "rankings": total}


def _rated(record: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rate the scores of one class over all rows, and over those of each group."""
    found = {}
    for group, mask in {"": np.ones(len(record), bool), **masks}.items():
        scores, truth = record["score"][mask], record["truth"][mask]
        rates = (average_precision(scores, truth), eleven_point_precision(scores, truth), roc_auc(scores, truth))
        found[group] = (int(truth.sum()), *rates)
    return found


def zeroshot_steps(run: Evaluating) -> list[Step]:
    """Return the steps for samples that have one class each, or for those that have several."""
    truth = run.source.truth
    return [_WriteScores(run), _RateClasses(run)] if truth and truth.several else [_Count(run)]
