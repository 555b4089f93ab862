"""The steps of `evaluate` that compare images with classes, where a sample has one right class or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clip_transforms.run.evaluate_steps import Evaluating, OverRuns, Run, State
from clip_transforms.run.over_parts import Step
from clip_transforms.run.ranking_steps import ranking_steps
from clip_transforms.run.tally import Tally, tally_of


class _Count(OverRuns):
    """Run of parts → its tally."""

    def do(self, item: Run) -> Tally:
        classifiers = self.run.classifiers()
        return Tally.sum(tally_of(self.run.read(part), classifiers) for part in item[1])

    def add(self, summaries: Iterable[Tally]) -> Tally:
        return Tally.sum(summaries).checked()

    def after(self, state: State, total: Tally) -> dict[str, Any]:
        return {**state, "zeroshot": total}


def zeroshot_steps(run: Evaluating) -> list[Step]:
    """Return the steps for samples that have one class each, or for those that have several."""
    truth = run.source.truth
    return ranking_steps(run) if truth and truth.several else [_Count(run)]
