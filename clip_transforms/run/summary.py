"""PartResults → their sum, and what the clocks say: how fast the run was, which stage held it back, and what helps."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from clip_transforms.parts.counts import add

_TELLING_SECONDS = 10.0
_NEAR = 0.75  # below this fraction of the bound, a faster model is not the first thing that helps
# Bottleneck → what helps: one of our flags, or hardware.
_HINTS = {
    "the model": "a GPU makes it faster, and more machines or --units share it out",
    "the model, on a GPU": "a second GPU makes it faster, and so does a larger --batch_size",
    "the model, below its ceiling": (
        "it went slower than in the run's first batches, since decoding (try --fast_decode) or other programs used its "
        "cores, or since the shards are very small"
    ),
    "reading": "a disk or a bucket closer to this machine helps, and so does --processes, since each reads by itself",
    "decoding": "more cores for this process help, and so do smaller pictures and --fast_decode",
    "writing": "a faster disk for --output helps, and so do fewer and larger shards",
}
_AT_A_TIME = 1_000
_MANY = 100  # processes are told apart up to here


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One unit, committed now or earlier.

    Attributes:
        path: URI of its embeddings part.
        counts: counts of the part, from its footer; see `clip_transforms.parts.counts`.
        seconds: seconds of this run by stage, since the unit before it in the same task; they add up.
        obtained: precision and device that it was embedded with, such as `fp32 on cpu`.
        skipped: whether an earlier run committed it.
        labelled: whether this run made labels from its stored embeddings.
        process: name of the process that did it; empty if it was skipped.
        ceiling: samples per second that the process could reach, if that was measured.
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
        units: number of units.
        skipped: number of units that an earlier run had committed.
        labelled: number of skipped units that got labels from their stored embeddings.
        counts: sum of the counts of all units.
        fresh: number of samples embedded in this run.
        seconds: seconds by stage.
        obtained: number of parts by precision and device.
        processes: names of the processes that worked, at most a hundred.
        ceiling: ceiling of the last process that measured one, in samples per second.
    """

    units: int = 0
    skipped: int = 0
    labelled: int = 0
    counts: Mapping[str, int] = dataclasses.field(default_factory=Counter)
    fresh: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=Counter)
    obtained: Mapping[str, int] = dataclasses.field(default_factory=Counter)
    processes: frozenset[str] = frozenset()
    ceiling: float | None = None

    @classmethod
    def of(cls, result: PartResult) -> RunSummary:
        """Summarise one unit."""
        return cls(
            units=1,
            skipped=int(result.skipped),
            labelled=int(result.labelled),
            counts=result.counts,
            fresh=0 if result.skipped else result.counts["samples"],
            seconds=result.seconds,
            obtained={result.obtained: 1},
            processes=frozenset([result.process] if result.process else []),
            ceiling=result.ceiling,
        )

    @classmethod
    def of_all(cls, results: Iterable[PartResult]) -> RunSummary:
        """Summarise many units without holding all their results."""
        total, waiting = cls(), iter(results)
        while some := list(itertools.islice(waiting, _AT_A_TIME)):
            total = cls.sum([total, *map(cls.of, some)])
        return total

    @classmethod
    def sum(cls, summaries: Iterable[RunSummary]) -> RunSummary:
        """Add summaries up."""
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


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide bytes or speed. Do not change the dictionary."""
    packages = ("clip-transforms", "apache-beam", "torch", "pyarrow", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def speed(summary: RunSummary, elapsed: float) -> dict[str, Any]:
    """Compute the speed of a run.

    The thread that feeds the model does one of four things at any moment: it runs the model (`forward`), waits for a
    batch to be read, waits for pictures to be decoded, or waits for the writer. The largest share of its time names the
    bottleneck. `bound` is the fraction of the ceiling that decoding on the same cores leaves: forward / (forward +
    decode core-seconds / cores). With several processes only the shares of the stages are given. A run of a few batches
    or seconds is mostly start-up, so it names no bottleneck.

    Args:
        summary: the sum over the run's units.
        elapsed: seconds since the run began, including start-up. With several processes the rate is computed from them.
    """
    clocks = defaultdict(float, summary.seconds)
    stages = {name: round(seconds, 3) for name, seconds in sorted(clocks.items())}
    if not summary.fresh:
        return {"samples": 0, "seconds": stages}
    alone = len(summary.processes) == 1
    rate = summary.fresh / (clocks["task"] if alone else elapsed)
    content: dict[str, Any] = {
        "samples": summary.fresh,
        "samples_per_second": round(rate, 2),
        "processes": len(summary.processes),
        "seconds": stages,
    }
    shares = _shares(clocks)
    if not alone:
        total = sum(shares.values()) or 1
        content["shares"] = {name: round(seconds / total, 4) for name, seconds in shares.items()}
    elif summary.ceiling or clocks["task"] >= _TELLING_SECONDS:
        bottleneck = max(shares, key=shares.__getitem__)
        on_gpu = bottleneck == "the model" and any("cuda" in obtained for obtained in summary.obtained)
        content |= {"bottleneck": bottleneck, "hint": _HINTS[f"{bottleneck}, on a GPU" if on_gpu else bottleneck]}
    if alone and summary.ceiling:
        forward = summary.fresh / summary.ceiling
        decode = clocks["decode / cores"]
        reached, bound = round(rate / summary.ceiling, 4), round(forward / (forward + decode), 4)
        content |= {"ceiling": round(summary.ceiling, 2), "fraction_of_ceiling": reached, "bound": bound}
        is_slowed = reached < _NEAR * bound
        if bottleneck == "the model" and not on_gpu and is_slowed:  # by what shares its cores
            content["hint"] = _HINTS["the model, below its ceiling"]
    return content


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds of the thread that feeds the model, by stage."""
    shares = {
        "the model": seconds["forward"],
        "reading": seconds["wait for read"],
        "decoding": seconds["wait for decode"],
    }
    return shares | {"writing": max(0.0, seconds["task"] - sum(shares.values()))}
