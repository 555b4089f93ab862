"""Which units of a plan are committed, judged by the parts themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clip_transforms.labels.part import stale_labels
from clip_transforms.parts.footers import part_stamps, read_digests, read_footers
from clip_transforms.run.job import Job
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import Unit
from schemas.provenance import Footer


def committed_parts(
    settings: Settings, units: Sequence[Unit], footers: Mapping[str, Footer], fingerprint: str
) -> dict[str, Mapping[str, int]]:
    """Find the units whose parts have the right fingerprint and stamp and belong together.

    Args:
        settings: the run's settings, which name the output and the kinds of parts that a unit must have.
        units: the units to look at.
        footers: part → footer of the embeddings parts that are there.
        fingerprint: fingerprint of the dataset.
    Returns:
        Part → counts.
    """
    # Existence is not enough: a rejects part may have been replaced by hand, or belong to another unit.
    there = [unit.part for unit in units if unit.part in footers]
    digests = [read_digests(settings.output, kind, there) for kind in settings.kinds]
    return {
        unit.part: footer["counts"]
        for unit in units
        if (footer := footers.get(unit.part))
        and footer["fingerprint"] == fingerprint
        and (footer["shard"], footer["stamp"]) == (unit.shard, unit.stamp)
        and all(of_kind.get(unit.part) == footer["digest"] for of_kind in digests)
    }


def without_damaged_shards(
    settings: Settings, units: Sequence[Unit], known: Mapping[str, Mapping[str, int]]
) -> dict[str, Mapping[str, int]]:
    """Keep the committed parts of other shares that may stay; the next run of its share does a damaged shard again.

    Args:
        settings: the run's settings; `allow_damaged_shards` keeps damaged shards too.
        units: the units of other shares.
        known: part → counts, from `committed_parts`.
    Returns:
        Part → counts of the parts that may stay.
    """
    return {
        unit.part: counts
        for unit in units
        if (counts := known.get(unit.part)) is not None
        and (settings.allow_damaged_shards or not counts.get("shards.rejected"))
    }


def committed_now(job: Job, siblings: Sequence[Unit]) -> dict[str, Mapping[str, int]]:
    """Look again which units of other shares are committed, with the labels of this run's taxonomies.

    Args:
        job: the run.
        siblings: the units of other shares.
    Returns:
        Part → counts.
    """
    if not siblings:
        return {}
    here = part_stamps(job.output, "embeddings")
    theirs = {unit.part: here[unit.part] for unit in siblings if unit.part in here}
    footers = read_footers(job.output, "embeddings", theirs)
    known = committed_parts(job.settings, siblings, footers, job.fingerprint)
    found = without_damaged_shards(job.settings, siblings, known)
    made = {part: footers[part] for part in found}
    stale = stale_labels(job.output, made, job.taxonomies, job.settings.top_labels)
    return {part: counts for part, counts in found.items() if part not in stale}
