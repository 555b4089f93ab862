"""The steps of `evaluate` that fit a linear probe."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from clip_transforms.evaluation.rows import Rows
from clip_transforms.evaluation.settings import SPLITS
from clip_transforms.evaluation.truth import flat
from clip_transforms.metrics.probe import MOST_FITS, Split, probe
from clip_transforms.metrics.single_label import Confusion
from clip_transforms.run.evaluate_steps import Evaluating, OverRuns, Run, State
from clip_transforms.run.over_parts import PROGRESS, Step
from clip_transforms.run.tally import by_group
from clip_transforms.select.bucket_file import read_bucket, read_note, write_buckets
from clip_transforms.select.sample import sampled
from clip_transforms.workers.machine import cores

TRAIN, VALIDATION, TEST, NONE = range(4)
_VALIDATION = 0.2  # of the training samples, where no column names those that validate
VECTORS, SPLIT, TRUTH, GROUP = range(4)  # buckets of a file


class _WriteSamples(OverRuns):
    """Run of parts → its samples with a truth: vectors, split, class and group, in one file."""

    def do(self, item: Run) -> Counter:
        number, parts = item
        uri = self.run.work("probe", number)
        if read_note(uri) is None:
            column = self.run.split_column
            found = [(part[0], self.run.read(part, also=[column] if column else [])) for part in parts]
            counts, samples = Counter[str](), []
            for part, rows in found:
                split, truth = self._split(part, rows), rows.truth
                assert truth is not None
                has = np.asarray(truth.is_valid())
                counts.update(rows.counts)
                counts.update(without_truth=int((~has).sum()), without_split=int((has & (split == NONE)).sum()))
                has &= split != NONE
                counts["scored"] += int(has.sum())
                groups = np.array(rows.groups or [None] * len(has), object)[has].tolist()
                samples.append((rows.vectors[has], split[has], truth.filter(pa.array(has)).to_pylist(), groups))
            vectors, splits = (np.concatenate([of[place] for of in samples]) for place in (VECTORS, SPLIT))
            texts = [json.dumps([text for of in samples for text in of[place]]).encode() for place in (TRUTH, GROUP)]
            note = {"counts": dict(counts), "d": vectors.shape[1]}
            write_buckets(uri, [vectors, splits.astype("u1"), *texts], self.run.folder, note)
        return Counter((read_note(uri) or {})["counts"])

    def _split(self, part: str, rows: Rows) -> np.ndarray:
        """Say what each row is for, int64 [n]."""
        run, places = self.run, np.asarray(rows.table.column("row"))
        if run.split_column is not None:
            names = flat(rows.table.column(run.split_column)).cast(pa.string()).to_pylist()
            return np.array([SPLITS.get((name or "").lower(), NONE) for name in names], np.int64)
        shard = rows.table.column("shard")[0].as_py() if len(places) else ""
        if run.test is not None:
            test = run.test.mask(part, rows.table.column("row"))
        else:
            test = sampled(shard, places, run.test_fraction, run.seed)
        validates = sampled(shard, places, _VALIDATION, run.seed + 1)
        return np.where(test, TEST, np.where(validates, VALIDATION, TRAIN))

    def after(self, state: State, total: Counter) -> dict[str, Any]:
        return {**state, "probe": {"rows": total}}


@dataclasses.dataclass(frozen=True)
class _FitProbe(Step):
    """All samples → the probe's C and its confusion on the test samples, on one worker, which holds all vectors."""

    run: Evaluating

    def items(self, state: State) -> list[None]:
        return [None]

    def do(self, item: None) -> list[dict[str, Any]]:
        uris = self.run.works("probe")
        d = max((read_note(uri) or {})["d"] for uri in uris)
        vectors = np.concatenate([np.frombuffer(read_bucket(uri, VECTORS), "<f4").reshape(-1, d) for uri in uris])
        split = np.concatenate([np.frombuffer(read_bucket(uri, SPLIT), "u1") for uri in uris])
        truth, groups = ([text for uri in uris for text in json.loads(read_bucket(uri, of))] for of in (TRUTH, GROUP))
        return [_fitted(vectors, split, truth, groups, self.run.split_column is not None)]

    def add(self, summaries: Any) -> list[dict[str, Any]]:
        return [found for summary in summaries for found in summary]

    def after(self, state: State, total: list[dict[str, Any]]) -> dict[str, Any]:
        return {**state, "probe": {**state["probe"], **total[0]}}


def _fitted(
    vectors: np.ndarray, split: np.ndarray, truth: Sequence[str], groups: Sequence[str | None], by_column: bool
) -> dict[str, Any]:
    """Fit a probe and test it."""
    names, codes = np.unique(np.array(truth, object).astype(str), return_inverse=True)
    if by_column and not (split == VALIDATION).any():  # a column with train and test alone
        rng = np.random.default_rng(0)
        split = np.where((split == TRAIN) & (rng.random(len(split)) < _VALIDATION), VALIDATION, split)
    parts = [Split(vectors[split == of], codes[split == of]) for of in (TRAIN, VALIDATION, TEST)]
    train, validation, test = parts
    sizes = {name: len(of.classes) for name, of in zip(("train", "validation", "test"), parts, strict=True)}
    found: dict[str, Any] = {"classes": names.tolist(), **sizes, "c": None, "confusions": {}}
    if len(np.unique(train.classes)) < 2 or not len(validation.classes) or not len(test.classes):
        return found
    PROGRESS["items"] += MOST_FITS  # a bar shows the fits, too
    with threadpool_limits(1, "blas"):  # several fits at a time keep the cores busier than threads of one fit do
        fitted = probe(train, validation, lambda: PROGRESS.update(done=1), cores())
    scores = np.full((len(test.classes), len(names)), -np.inf)
    decided = fitted.model.decision_function(test.vectors)
    decided = np.stack([-decided, decided], axis=1) if decided.ndim == 1 else decided
    scores[:, fitted.model.classes_] = decided
    of_test = [group for group, of in zip(groups, split, strict=True) if of == TEST]
    places = by_group(of_test, len(of_test))
    found["confusions"] = {group: Confusion.of(scores[of], test.classes[of]) for group, of in places.items()}
    lacking = sorted(set(test.classes.tolist()) - set(fitted.model.classes_.tolist()))
    return {
        **found,
        "c": float(fitted.model.C),
        "tried": fitted.tried,
        "converged": fitted.converged,
        "not_trained": [str(names[code]) for code in lacking],
    }


def probe_steps(run: Evaluating) -> list[Step]:
    """Return the steps that fit a probe."""
    return [_WriteSamples(run), _FitProbe(run)]
