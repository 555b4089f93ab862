"""The steps of `evaluate` that rank images by class, where a sample may have several right classes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.evaluation.rows import Rows
from clip_transforms.evaluation.truth import flags_of
from clip_transforms.labels.batch import Classifier
from clip_transforms.metrics.multi_label import average_precision, eleven_point_precision, roc_auc
from clip_transforms.run.evaluate_steps import Evaluating, OverRuns, Run, State
from clip_transforms.run.over_parts import Step
from clip_transforms.run.tally import Group, Tally, scores_of, tally_of
from clip_transforms.select.bucket_file import read_bucket, read_bytes, read_ends, read_note, write_buckets

_SCORES = 128 << 20  # bytes of scores that one task brings together
_SCORE = np.dtype([("score", "<f4"), ("truth", "?")])
# Group → positives, average precision, eleven-point precision, ROC AUC; None is all rows.
Rated = dict[Group, tuple[int, float | None, float | None, float | None]]
Rankings = dict[int, Rated]  # by class


class _WriteScores(OverRuns):
    """Run of parts → scores and truth of its rows, class by class, in a file for each taxonomy; and its tally.

    The file of a run has a bucket for each class, and one with the group of each row.
    """

    def do(self, item: Run) -> Tally:
        number, parts = item
        classifiers, all_rows = self.run.classifiers(), [self.run.read(part) for part in parts]
        tallies, kept = [], []
        for rows in all_rows:
            truth, n = rows.truth, len(rows.vectors)
            assert truth is not None
            labels = tally_of(dataclasses.replace(rows, truth=None), classifiers)
            known = _known(truth, [of.names for of in classifiers.values()])
            kept.append(dataclasses.replace(rows, truth=known))
            missing, unknown = int(truth.null_count), int(known.null_count - truth.null_count)
            counted = {"without_truth": missing, "unknown_truth": unknown, "scored": n - missing - unknown}
            tallies.append(dataclasses.replace(labels, rows=Counter({**labels.rows, **counted})))
        for name, of in classifiers.items():
            records, groups, others = [], [], Counter[str]()
            for rows, given in zip(kept, all_rows, strict=True):
                found, own = _records(rows, of)
                records.append(found)
                groups += own
                assert given.truth is not None
                others.update(flags_of(given.truth.drop_null(), of.names)[1])
            joined, names = np.concatenate(records), sorted({group for group in groups if group is not None})
            codes = {group: code for code, group in enumerate(names)}
            numbers = np.array([codes.get(group, -1) if group is not None else -1 for group in groups], "<i4")
            uri, note = self.run.work("scores", name, number), {"groups": names}
            write_buckets(uri, [*np.ascontiguousarray(joined.T), numbers], self.run.folder, note)
            tallies.append(Tally(Counter(), others, {}))
        return Tally.sum(tallies)

    def add(self, summaries: Iterable[Tally]) -> Tally:
        return Tally.sum(summaries).checked()

    def after(self, state: State, total: Tally) -> dict[str, Any]:
        return {**state, "zeroshot": total}


def _known(truth: pa.Array, taxonomies: Sequence[Sequence[str]]) -> pa.Array:
    """Return the truth without the lists of which a taxonomy has no value: null in their place.

    An empty list stays: such a sample has none of the classes.
    """
    stays = np.ones(len(truth), bool)
    for names in taxonomies:
        stays &= flags_of(truth, names)[0].any(axis=1)
    stays |= np.asarray(pc.fill_null(pc.list_value_length(truth), 0)) == 0
    return truth.take(pa.array(np.arange(len(truth)), mask=~stays))


def _records(rows: Rows, classifier: Classifier) -> tuple[np.ndarray, list[Group]]:
    """Return scores and truth of the rows that have a truth, [m, k], and their groups."""
    assert rows.truth is not None
    has = np.asarray(rows.truth.is_valid())
    records = np.empty((len(has), len(classifier.names)), _SCORE)
    for some, scores in scores_of(rows, classifier):
        records["score"][some] = scores
    records = records[has]
    records["truth"] = flags_of(rows.truth.drop_null(), classifier.names)[0]
    groups = rows.groups if rows.groups is not None else [None] * len(has)
    return records, [group for group, one in zip(groups, has, strict=True) if one]


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


def _rated(record: np.ndarray, masks: Mapping[Group, np.ndarray]) -> Rated:
    """Rate the scores of one class over all rows, and over those of each group."""
    found: Rated = {}
    for group, mask in {None: np.ones(len(record), bool), **masks}.items():
        scores, truth = record["score"][mask], record["truth"][mask]
        ranked = average_precision(scores, truth), eleven_point_precision(scores, truth), roc_auc(scores, truth)
        found[group] = (int(truth.sum()), *ranked)
    return found


def ranking_steps(run: Evaluating) -> list[Step]:
    """Return the steps for samples that may have several classes."""
    return [_WriteScores(run), _RateClasses(run)]
