"""The last step of a run: run.json and _SUCCESS, written from what lies in the output."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.counts import ALL, add, check_balance, counted, reject_fractions, seen_fields
from clip_transforms.parts.footers import part_names, part_uri, taxonomy_names
from clip_transforms.parts.kept_footers import tidy_footers
from clip_transforms.parts.manifest import finish_run
from clip_transforms.run.begin import Beginning
from clip_transforms.run.committed import committed_now
from clip_transforms.run.job import Job, read_units
from clip_transforms.run.run_folder import remove_run_folder
from clip_transforms.run.summary import RunSummary, speed, versions
from schemas.samples import MODALITIES

NOTHING_EMBEDDED = "nothing was embedded"
DAMAGED = "could not be read to the end"
# How to name the field that holds the pictures or captions.
CAPTION_FLAG = "--caption_column NAME"
IMAGE_FLAGS = "--image_extension EXT for tars, --image_column NAME for Parquet files and listings"


def write_run(job: Job, summary: RunSummary) -> dict[str, Any]:
    """Compare the results with the output, write run.json and _SUCCESS, and return the content of run.json.

    If the run does a share of its plan, counts and problems are the share's until the whole plan is committed.

    Raises:
        BalanceError: if the sums do not add up.
    """
    check_balance(summary.counts, "the run")
    beginning = Beginning.read(job.folder)
    siblings = [planned.unit for planned in read_units(job, job.units, job.units + beginning.siblings)]
    parts = {unit.part for unit in siblings}
    theirs = committed_now(job, siblings)
    if len(theirs) == len(siblings) and (summary.units > summary.skipped or summary.labelled):
        tidy_footers(job.output, job.kinds)
    content = _finish(job, beginning, summary, parts, theirs)
    missing = [unit for unit in siblings if unit.part not in theirs]
    if missing and len(late := committed_now(job, missing)) == len(missing):
        # The last share ended in the meantime, and this run may have replaced its run.json. Write it again.
        content = _finish(job, beginning, summary, parts, theirs | late)
    remove_run_folder(job.folder)
    return content


def _finish(
    job: Job, beginning: Beginning, summary: RunSummary, siblings: set[str], theirs: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Write what the run leaves.

    Args:
        job: the run.
        beginning: what was known when the run began.
        summary: the sum over this run's units.
        siblings: parts of the plan that belong to other shares.
        theirs: part → counts of those siblings that are committed.
    """
    whole = len(theirs) == len(siblings)
    counts = add([summary.counts, *theirs.values()])
    taxonomies = taxonomy_names(job.output)
    if whole:
        _remove_obsolete(job, beginning, taxonomies)
    names = part_names(job.output, "embeddings") - set(beginning.obsolete) - (siblings - theirs.keys())
    unlabelled = {name: len(names - part_names(job.output, f"labels/{name}")) for name in taxonomies}
    expected = job.units + beginning.other_parts + len(theirs)
    problems = _missing_parts(job, summary.units, len(names), expected)
    nothing = _nothing_embedded(counts, job.units + len(siblings)) if whole else []
    problems += nothing or _too_much_lost(job, counts if whole else summary.counts, whole)
    content = {
        "run": job.run,
        "command": list(beginning.command),
        "started": _time(beginning.started),
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
        "dataset": {"parts": len(names), **dict(sorted(add([counts, beginning.others]).items()))},
        "left_out": dict(beginning.left_out),
        "unlabelled": {name: count for name, count in unlabelled.items() if count},
        "parts_by_device": dict(summary.obtained),
        "speed": speed(summary, time.time() - beginning.started),
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


def _remove_obsolete(job: Job, beginning: Beginning, taxonomies: set[str]) -> None:
    for part in beginning.obsolete:
        for kind in ("embeddings", "rejects", "captions", *(f"labels/{name}" for name in taxonomies)):
            storage.remove(part_uri(job.output, kind, part))


def _missing_parts(job: Job, done: int, found: int, expected: int) -> list[str]:
    """Say so if there are fewer parts than there should be.

    Args:
        job: the run.
        done: number of units that reported a result.
        found: number of parts in the dataset.
        expected: number of parts that the dataset must have at least.
    """
    if done == job.units and found >= expected:
        return []
    return [f"embeddings/ should hold {counted(expected, 'part')}, but holds {found:,}; run the same command again"]


def _nothing_embedded(counts: Mapping[str, int], units: int) -> list[str]:
    """Say so if nothing was embedded at all, with what was found instead.

    Args:
        counts: counts of the whole plan.
        units: number of units in the plan.
    """
    if any(counts.get(f"{name}.embedded", 0) for name in (*MODALITIES, ALL)):
        return []
    rejected = [counted(n, modality) for modality in MODALITIES if (n := counts.get(f"{modality}.rejected", 0))]
    samples, damaged = counts.get("samples", 0), counts.get("shards.rejected", 0)
    shards = f"{counted(damaged, 'shard')} {DAMAGED} (see rejects/)"
    if rejected:
        why = f"all that was offered was rejected, {' and '.join(rejected)} (see rejects/); mend it and run again"
    elif samples:
        fields = seen_fields(counts)
        why = (
            "no sample has an image or a caption that is read"
            f"{f'; {fields}' if fields else ''}{f'; {shards}' if damaged else ''}; convert other kinds of pictures to "
            f"JPEG or PNG, unpack tars inside tars, or name the field that is meant: {IMAGE_FLAGS}, {CAPTION_FLAG}"
        )
    elif damaged:
        why = f"{shards}, and no sample comes before the damage; mend and run again"
    else:
        why = f"--input holds no sample, in {counted(units, 'unit')}; look at what wrote it, or give another --input"
    return [f"{NOTHING_EMBEDDED}: {why}"]


def _too_much_lost(job: Job, counts: Mapping[str, int], whole: bool) -> list[str]:
    """Say so if shards could not be read, or more was rejected than the settings accept.

    Args:
        job: the run.
        counts: counts of the plan, or of this run's share.
        whole: whether the whole plan is committed; the share of rejects is judged over all of it.
    """
    problems = []
    damaged = counts.get("shards.rejected", 0)
    if damaged and not job.settings.allow_damaged_shards:
        problems.append(
            f"{counted(damaged, 'shard')} {DAMAGED} (see rejects/); mend and run again, or accept with "
            "--allow_damaged_shards"
        )
    for modality, fraction in reject_fractions(counts).items():
        named = "all captions" if modality == ALL else f"the {modality}s"
        if whole and fraction > job.settings.max_reject_fraction:
            problems.append(
                f"{fraction:.1%} of {named} were rejected (see rejects/), more than --max_reject_fraction "
                f"{job.settings.max_reject_fraction:g}; mend them and run again, or accept them with a larger fraction"
            )
    return problems


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
