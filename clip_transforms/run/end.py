"""The last step of a run: run.json and _SUCCESS, from what lies in the output."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.counts import add, check_balance, counted, reject_fractions
from clip_transforms.parts.dataset import finish_run
from clip_transforms.parts.footers import part_names, part_uri, taxonomy_names
from clip_transforms.run.committed import accepted_now
from clip_transforms.run.folder import remove_run_folder
from clip_transforms.run.job import Job, read_units
from clip_transforms.run.summary import RunSummary, speed, versions


def write_run(job: Job, summary: RunSummary) -> dict[str, Any]:
    """Compare with what lies in the output, write run.json and _SUCCESS; run.json's content.

    Of a run that does a share of its plan, counts and problems are the share's, until the whole plan is committed.

    Raises:
        BalanceError: if the sums do not add up.
    """
    check_balance(summary.counts, "the run")
    siblings = [planned.unit for planned in read_units(job, job.units, job.units + job.siblings)]
    theirs = accepted_now(job, siblings)
    content = _finish(job, summary, {unit.part for unit in siblings}, theirs)
    missing = [unit for unit in siblings if unit.part not in theirs]
    if missing and len(late := accepted_now(job, missing)) == len(missing):
        # The last share ended meanwhile. What it wrote is right, but this run may have written over its run.json.
        content = _finish(job, summary, {unit.part for unit in siblings}, theirs | late)
    remove_run_folder(job.folder)
    return content


def _finish(job: Job, summary: RunSummary, siblings: set[str], theirs: Mapping[str, Counter]) -> dict[str, Any]:
    """Write what the run leaves.

    Args:
        job: the run.
        summary: of its units.
        siblings: parts of the plan that are other shares'.
        theirs: part → counts of those of them that are committed.
    """
    whole = len(theirs) == len(siblings)
    counts = add([summary.counts, *theirs.values()])
    obsolete = set(json.loads(storage.read_bytes(storage.join(job.folder, "obsolete.json"))))
    taxonomies = taxonomy_names(job.output)
    if whole:
        for part in obsolete:
            for kind in ("embeddings", "rejects", *(f"labels/{name}" for name in taxonomies)):
                storage.remove(part_uri(job.output, kind, part))
    names = part_names(job.output, "embeddings") - obsolete - (siblings - theirs.keys())
    unlabelled = {name: len(names - part_names(job.output, f"labels/{name}")) for name in taxonomies}
    problems = _problems(job, summary.units, len(names), len(theirs), counts if whole else summary.counts, whole)
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
        "complete": whole and not problems,
        "problems": problems,
        "units": {
            "input": job.units,
            "committed": job.units - summary.skipped,
            "skipped": summary.skipped,
            "labelled": summary.labelled,
        },
        "input": dict(sorted(summary.counts.items())),
        "dataset": {"parts": len(names), **dict(sorted(add([counts, job.others]).items()))},
        "unlabelled": {name: count for name, count in unlabelled.items() if count},
        "parts_by_device": dict(summary.obtained),
        "speed": speed(summary, time.time() - job.started),
    }
    if job.settings.units:
        content["plan"] = {
            "share": job.settings.units,
            "units": job.units + len(siblings),
            "missing": len(siblings) - len(theirs),
            "counts": dict(sorted(counts.items())),
        }
    finish_run(job.output, job.run, content, success=not problems if whole else None, scratch=job.folder)
    return content


def _problems(job: Job, done: int, parts: int, theirs: int, counts: Mapping[str, int], whole: bool) -> list[str]:
    """Why there is no _SUCCESS though all that was to be done was.

    Args:
        job: the run.
        done: units of which there is a PartResult.
        parts: in the dataset.
        theirs: of these, parts of other shares.
        counts: of the plan, or of this run's share.
        whole: whether the plan is there; rejects are judged over all of it.
    """
    problems = []
    expected = job.units + job.other_parts + theirs
    damaged = counts.get("shards.rejected", 0)
    if done != job.units or parts < expected:
        problems.append(
            f"{counted(expected, 'part')} were expected in embeddings/, but {parts:,} are there; run the same command "
            "again"
        )
    if damaged and not job.settings.allow_damaged_shards:
        problems.append(
            f"{counted(damaged, 'shard')} could not be read to the end (see rejects/); mend and run again, or accept "
            "with --allow_damaged_shards"
        )
    for modality, fraction in reject_fractions(counts).items():
        if whole and fraction > job.settings.max_reject_fraction:
            problems.append(
                f"{fraction:.1%} of the {modality}s were rejected (see rejects/), more than --max_reject_fraction "
                f"{job.settings.max_reject_fraction:g}; mend them and run again, or accept them with a larger fraction"
            )
    return problems


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
