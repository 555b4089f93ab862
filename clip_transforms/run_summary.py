"""PartResults → what a run leaves: its summary, run.json, _SUCCESS. Small, whatever the number of units."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from clip_transforms import storage
from clip_transforms.job import Job
from clip_transforms.parts.counts import add, check_balance, reject_fractions
from clip_transforms.parts.reader import part_names, part_uri, taxonomy_names
from clip_transforms.parts.run_folder import remove_run_folder
from clip_transforms.parts.run_manifest import finish_run
from clip_transforms.run_speed import speed

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


def write_run(job: Job, summary: RunSummary) -> dict[str, Any]:
    """The last step of a run: compare with what lies in the output, write run.json and _SUCCESS; run.json's content.

    Raises:
        BalanceError: if the sums do not add up.
    """
    check_balance(summary.counts, "the run")
    for part in json.loads(storage.read_bytes(storage.join(job.folder, "obsolete.json"))):
        for kind in ("embeddings", "rejects", *(f"labels/{t}" for t in taxonomy_names(job.output))):
            storage.remove(part_uri(job.output, kind, part))
    names = part_names(job.output, "embeddings")
    parts = len(names)
    unlabelled = {t: len(names - part_names(job.output, f"labels/{t}")) for t in taxonomy_names(job.output)}
    expected = job.units + job.other_parts
    damaged = summary.counts.get("shards.rejected", 0)
    problems = []
    if summary.units != job.units or parts < expected:
        problems.append(
            f"{_count(expected, 'part')} were expected in embeddings/, but {parts:,} are there; run the same command "
            "again"
        )
    if damaged and not job.settings.allow_damaged_shards:
        problems.append(
            f"{_count(damaged, 'shard')} could not be read to the end (see rejects/); mend and run again, or accept "
            "with --allow_damaged_shards"
        )
    for modality, fraction in reject_fractions(summary.counts).items():
        if fraction > job.settings.max_reject_fraction:
            problems.append(
                f"{fraction:.1%} of the {modality}s were rejected (see rejects/), more than --max_reject_fraction "
                f"{job.settings.max_reject_fraction:g}; mend them and run again, or accept them with a larger fraction"
            )
    content = {
        "run": job.run,
        "command": list(job.command),
        "started": _time(job.started),
        "finished": _time(time.time()),
        "host": socket.gethostname(),
        "versions": versions(),
        "fingerprint": job.fingerprint,
        "settings": dict(job.fields),
        "taxonomies": dict(job.taxonomies),
        "complete": not problems,
        "problems": problems,
        "units": {
            "input": job.units,
            "committed": job.units - summary.skipped,
            "skipped": summary.skipped,
            "labelled": summary.labelled,
        },
        "input": dict(sorted(summary.counts.items())),
        "dataset": {"parts": parts, **dict(sorted(add([summary.counts, job.others]).items()))},
        "unlabelled": {name: count for name, count in unlabelled.items() if count},
        "parts_by_device": dict(summary.obtained),
        "speed": speed(summary, time.time() - job.started),
    }
    finish_run(job.output, job.run, content, success=not problems, scratch=job.folder)
    remove_run_folder(job.folder)
    return content


def versions() -> dict[str, str]:
    """Of Python and the packages that matter here."""
    packages = ("clip-transforms", "apache-beam", "torch", "pyarrow", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _count(number: int, word: str) -> str:
    return f"{number:,} {word if number == 1 else word + 's'}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
