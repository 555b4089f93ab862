"""On the launcher: settings → the plan of a run. Finds, hashes, compares, lists; reads no image and needs no torch."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint
from clip_transforms.labels.part import stale_labels
from clip_transforms.parts.counts import has_rejects
from clip_transforms.parts.dataset import (
    OutputError,
    check_taxonomies,
    read_dataset,
)
from clip_transforms.parts.fingerprint import check_same, fingerprint
from clip_transforms.parts.footers import part_names, part_uri, read_footers, taxonomy_names
from clip_transforms.run.committed import accepted, committed_parts
from clip_transforms.run.settings import Settings
from clip_transforms.shards.inventory import RowList, plan_units
from clip_transforms.shards.unit import Unit
from schemas.provenance import Footer


@dataclasses.dataclass
class RunPlan:
    """A run that could start.

    Attributes:
        settings, checkpoint, fields: as in Job.
        units: of this run's input, or its share of them.
        siblings: the other units of the input, which are other runs' share.
        waiting: of the siblings, how many are not committed.
        committed: part → counts, of units that an earlier run committed.
        stale: part → taxonomies, of committed units whose labels are to be made.
        obtained: part → precision and device, of committed units.
        others: part → footer, of parts that are not in the input.
        obsolete: parts of shards that are in the input and are cut otherwise now; they go when all is committed.
        replaces: whether the output holds a dataset of other settings.
        detection: lines that say what was taken from the input and what was not.
        lists: name → list beside the plan, of the units of folders and listings.
    """

    settings: Settings
    checkpoint: Checkpoint
    fields: dict[str, str]
    units: list[Unit]
    siblings: list[Unit]
    waiting: int
    committed: dict[str, Counter]
    stale: dict[str, list[str]]
    obtained: dict[str, str]
    others: dict[str, Footer]
    obsolete: list[str]
    replaces: bool
    detection: list[str]
    lists: dict[str, RowList]

    @property
    def pending(self) -> int:
        """How many units are still to be embedded."""
        return len(self.units) - len(self.committed)


def plan_run(settings: Settings) -> RunPlan:
    """Find what is to be done.

    Args:
        settings: of the run.
    Raises:
        ValueError: one of its kinds, with one sentence for the person who wrote the settings.
    """
    settings = dataclasses.replace(settings, output=storage.normalise(settings.output))
    checkpoint = settings.resolve_checkpoint()
    fields = settings.fingerprint_fields(checkpoint)
    made = read_dataset(settings.output)
    storage.check_writable(settings.output)
    digests = {taxonomy.name: taxonomy.digest for taxonomy in settings.taxonomies}
    if made is not None and not settings.overwrite:
        check_same(settings.output, made["settings"], fields)
        check_taxonomies(settings.output, made, digests)
    found = plan_units(settings.inputs, settings.reader)
    names = sorted(part_names(settings.output, "embeddings")) if made is not None else []
    footers = read_footers(settings.output, "embeddings", names)
    units, siblings = _shared(found.units, *settings.share)
    known = committed_parts(settings.output, found.units, footers, fingerprint(fields))
    committed = _to_be_kept(settings, units, known)
    waiting = len(siblings) - len(accepted(settings, siblings, known))
    parts = {unit.part for unit in found.units}
    others = {part: footer for part, footer in footers.items() if part not in parts}
    source_of = _sources([*(unit.shard for unit in found.units), *(footer["shard"] for footer in footers.values())])
    sources = {source_of[unit.shard] for unit in found.units}
    obsolete = {
        part
        for part, footer in others.items()
        if source_of[footer["shard"]] in sources
        # What cannot be read to its end today is not known to be cut anew: its parts go when it can be read.
        and not (footer["shard"] in found.unread and footer["fingerprint"] == fingerprint(fields))
    }
    others = {part: footer for part, footer in others.items() if part not in obsolete}
    foreign = sorted(part for part, footer in others.items() if footer["fingerprint"] != fingerprint(fields))
    if foreign:
        raise OutputError(
            f"--overwrite would leave {len(foreign)} parts of other settings that are not in --input, {foreign[0]} "
            "among them; give all of the dataset's inputs, or another --output"
        )
    if settings.overwrite:
        _refuse_half_a_taxonomy(settings, made, digests, others)
    done = {part: footers[part] for part in committed}
    stale = stale_labels(settings.output, done, digests, settings.top_labels)
    obtained = {part: "{precision} on {device}".format(**footer["provenance"]) for part, footer in done.items()}
    replaces = made is not None and made["settings"] != fields
    lines = [*found.detection, *_doubles(found.units, others, source_of)]
    if settings.units:
        lines.append(f"--units {settings.units}: {len(units):,} of the {len(found.units):,} units of the plan")
    lost = sorted(taxonomy_names(settings.output) - set(digests)) if made is not None else []
    if lost and (changed := sum(unit.part in footers and unit.part not in committed for unit in units)):
        lines.append(
            f"warning: {changed} of the parts are made anew, and their labels/{', labels/'.join(lost)} go with the old "
            "ones; name them with --taxonomy too to have them made again"
        )
    damaged = [name for name in names if name not in footers and name not in parts]
    if damaged:
        lines.append(
            f"warning: {part_uri(settings.output, 'embeddings', damaged[0])} is not whole, and not of this "
            f"run's input ({len(damaged)} such); run the command that made it again, or remove it"
        )
    return RunPlan(
        settings,
        checkpoint,
        fields,
        units,
        siblings,
        waiting,
        committed,
        stale,
        obtained,
        others,
        sorted(obsolete),
        replaces,
        lines,
        found.lists,
    )


def _sources(shards: Sequence[str]) -> dict[str, str]:
    """Shard → what it is a piece of: of a folder's unit, `<folder>#<path>`, the folder; of any other the shard itself.

    Names may hold a # too. What is a folder is told by its first unit, whose path is empty.
    """
    folders = {shard[:-1] for shard in shards if shard.endswith("#")}

    def source(shard: str) -> str:
        places = (place for place in range(len(shard) - 1, -1, -1) if shard[place] == "#")
        return next((shard[:place] for place in places if shard[:place] in folders), shard)

    return {shard: source(shard) for shard in shards}


def _doubles(units: Sequence[Unit], others: Mapping[str, Footer], source_of: Mapping[str, str]) -> list[str]:
    """One warning line where a new shard looks like one that is in the dataset under another URI."""

    def looks(shard: str, stamp: str) -> tuple[str, str]:
        # File name and size, of a shard that is a file; a folder's stamp is a hash of its files' names and times.
        return posixpath.basename(source_of[shard]), stamp.partition("-")[0]

    known = {looks(footer["shard"], footer["stamp"]): footer["shard"] for footer in others.values()}
    alike = []
    for unit in units:
        first = known.setdefault(looks(unit.shard, unit.stamp), unit.shard)
        if first != unit.shard:
            alike.append((unit.shard, first))
    if not alike:
        return []
    new, old = alike[0]
    return [
        f"warning: {new} has the name and size of {old} ({len(alike)} such units); if it is the same, its rows will be "
        "in the dataset twice"
    ]


def _shared(units: Sequence[Unit], i: int, n: int) -> tuple[list[Unit], list[Unit]]:
    """The units of share i of n, and those of the others; in an order that --input does not change."""
    if n == 1:
        return list(units), []
    plan = sorted(units, key=lambda unit: (unit.shard, unit.first_row, unit.part))
    return plan[i::n], [unit for place, unit in enumerate(plan) if place % n != i]


def _to_be_kept(settings: Settings, units: Sequence[Unit], known: Mapping[str, Counter]) -> dict[str, Counter]:
    """Part → counts of the committed units that need not be done again."""
    return {
        unit.part: counts
        for unit in units
        if (counts := known.get(unit.part)) is not None
        and not counts["shards.rejected"]
        and not (settings.retry_rejects and has_rejects(counts, settings.retry_rejects))
    }


def _refuse_half_a_taxonomy(
    settings: Settings, made: Mapping[str, Any] | None, digests: Mapping[str, str], others: Mapping[str, Footer]
) -> None:
    """Two sets of classes under one name must not lie side by side."""
    known = made["taxonomies"] if made else {}
    for name in [name for name, digest in digests.items() if known.get(name, digest) != digest]:
        left = set(others) & part_names(settings.output, f"labels/{name}")
        if left:
            raise OutputError(
                f"--overwrite would leave labels/{name} of other classes for {len(left)} parts outside --input; "
                f"python -m pipelines.label --input {settings.output} --taxonomy … --overwrite labels all of them anew"
            )
