"""PartResults → their sum, and how fast that was. Small, whatever the number of units."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable

from clip_transforms.parts.counts import add

_MANY = 100  # processes are told apart up to here


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One unit, committed now or earlier.

    Attributes:
        path: URI of its embeddings part.
        counts: of the part, from its footer; see `clip_transforms.parts.counts`.
        seconds: of this run, by stage; what a task shares is on its last unit. Empty if the unit was skipped.
        obtained: precision and device that it was embedded with, such as `fp32 on cpu`.
        skipped: whether an earlier run committed it.
        labelled: whether this run made labels from its stored embeddings.
        process: that did it; empty if it was skipped.
        ceiling: samples per second that the process could reach, where that was measured.
    """

    path: str
    counts: dict[str, int]
    seconds: dict[str, float]
    obtained: str
    skipped: bool = False
    labelled: bool = False
    process: str = ""
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """The sum of PartResults.

    Attributes:
        units, skipped: how many there were, and how many of them an earlier run had committed.
        labelled: of the latter, how many got labels from their stored embeddings.
        counts: of all of them.
        fresh: samples embedded in this run.
        seconds: by stage.
        obtained: parts by precision and device.
        processes: names of the processes that worked, at most a hundred.
        ceiling: of the last process that measured one.
    """

    units: int = 0
    skipped: int = 0
    labelled: int = 0
    counts: Counter = dataclasses.field(default_factory=Counter)
    fresh: int = 0
    seconds: Counter = dataclasses.field(default_factory=Counter)
    obtained: Counter = dataclasses.field(default_factory=Counter)
    processes: frozenset[str] = frozenset()
    ceiling: float | None = None

    @classmethod
    def of(cls, result: PartResult) -> RunSummary:
        """The summary of one unit."""
        return cls(
            units=1,
            skipped=int(result.skipped),
            labelled=int(result.labelled),
            counts=Counter(result.counts),
            fresh=0 if result.skipped else result.counts["samples"],
            seconds=Counter(result.seconds),
            obtained=Counter([result.obtained]),
            processes=frozenset([result.process] if result.process else []),
            ceiling=result.ceiling,
        )

    @classmethod
    def sum(cls, summaries: Iterable[RunSummary]) -> RunSummary:
        """All together."""
        summaries = list(summaries)
        return cls(
            units=sum(summary.units for summary in summaries),
            skipped=sum(summary.skipped for summary in summaries),
            labelled=sum(summary.labelled for summary in summaries),
            counts=add(summary.counts for summary in summaries),
            fresh=sum(summary.fresh for summary in summaries),
            seconds=add(summary.seconds for summary in summaries),
            obtained=add(summary.obtained for summary in summaries),
            processes=frozenset(sorted(frozenset().union(*(summary.processes for summary in summaries)))[:_MANY]),
            ceiling=next((summary.ceiling for summary in reversed(summaries) if summary.ceiling), None),
        )


def versions() -> dict[str, str]:
    """Of Python and the packages that matter here."""
    packages = ("clip-transforms", "apache-beam", "torch", "pyarrow", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
