"""On the launcher: settings → the plan of a run. Planning lists, hashes and compares; it reads no image."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.downloads import fetch
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.labels.classes import check_classes
from clip_transforms.labels.part import stale_labels
from clip_transforms.parts.counts import counted, has_rejects
from clip_transforms.parts.fingerprint import check_same, fingerprint
from clip_transforms.parts.footers import part_names, part_stamps, part_uri, read_footers, taxonomy_names
from clip_transforms.parts.manifest import OutputError, check_taxonomies, read_dataset
from clip_transforms.parts.shard_name import sources_of
from clip_transforms.run.committed import committed_parts, without_damaged_shards
from clip_transforms.run.doubles import doubles
from clip_transforms.run.job import PlannedUnit
from clip_transforms.run.places import Places, find_places
from clip_transforms.run.settings import Settings
from clip_transforms.shards.inventory import Inventory, take_inventory
from clip_transforms.shards.left_out import summed
from clip_transforms.shards.side_file import SideFile
from clip_transforms.shards.unit import UNLISTED, Unit
from schemas.provenance import Footer


@dataclasses.dataclass
class RunPlan:
    """A run that could start.

    Attributes:
        settings: the run's settings, with a normalised output.
        checkpoint: the resolved checkpoint.
        fields: the fields of the fingerprint.
        units: the units of this run's input, or of its share.
        siblings: the other units of the input, which belong to the shares of other runs.
        others: part → footer of parts that are not made from this input and stay.
        obsolete: parts of shards of this input that are cut differently now. They go when everything is committed.
        replaces: whether the output holds a dataset of other settings.
        lines: what the command prints first: what was found, what was left out, and warnings.
        left_out: what the inputs hold besides and is not read: kind → (number, name of the first).
        side_files: name → side file, which lies beside the plan and holds the units of a folder or listing.
    """

    settings: Settings
    checkpoint: Checkpoint
    fields: dict[str, str]
    units: list[PlannedUnit]
    siblings: list[PlannedUnit]
    others: dict[str, Footer]
    obsolete: list[str]
    replaces: bool
    lines: list[str]
    left_out: dict[str, tuple[int, str]]
    side_files: dict[str, SideFile]

    @property
    def pending(self) -> list[Unit]:
        """The units to embed."""
        return [planned.unit for planned in self.units if not planned.is_committed]

    @functools.cached_property
    def places(self) -> Places:
        """The processes that embed, if this machine does: asked for once, since free memory changes."""
        return find_places(self.settings, self.checkpoint, len(self.pending))

    def fetch_model(self) -> None:
        """Download a published model, if units need it, before anything is started on this machine.

        Raises:
            CheckpointError: if the model cannot be downloaded.
        """
        if self.pending and self.checkpoint.published:
            fetch(self.checkpoint.published)

    @property
    def unlabelled(self) -> int:
        """Number of committed units that lack labels of this run's taxonomies."""
        return sum(bool(planned.labels) for planned in self.units)


@dataclasses.dataclass
class _Stored:
    """What lies in the output already.

    Attributes:
        made: content of `_dataset.json`, or None for a new dataset.
        names: names of the embeddings parts.
        footers: part → footer, of those that are whole.
    """

    made: dict[str, Any] | None
    names: list[str] = dataclasses.field(default_factory=list)
    footers: dict[str, Footer] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def _garbage_waits() -> Iterator[None]:
    """Pause the search for cyclic garbage: a plan is a million objects that stay, and has no cycles to speak of."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_garbage_waits()
def plan_run(settings: Settings) -> RunPlan:
    """Decide what a run must do.

    Raises:
        ValueError: or one of its subclasses, with one sentence for the person who wrote the settings.
    """
    settings = dataclasses.replace(settings, output=storage.normalise(settings.output))
    checkpoint = settings.resolve_checkpoint()
    fields = settings.fingerprint_fields(checkpoint)
    made = _check_output(settings, fields)
    found = take_inventory(settings.inputs, settings.reader)
    stored = _read_stored(settings, made)
    units, siblings = _compare(settings, found.units, stored.footers, fingerprint(fields))
    source_of = sources_of([*(unit.shard for unit in found.units), *(f["shard"] for f in stored.footers.values())])
    others, obsolete = _sort_others(found, stored.footers, source_of, fingerprint(fields))
    _check_others(settings, stored, others, fingerprint(fields))
    lines = [*found.detection, *doubles(found.units, others, source_of), *_notes(settings, found, units, stored)]
    replaces = made is not None and made["settings"] != fields
    return RunPlan(
        settings,
        checkpoint,
        fields,
        units,
        siblings,
        others,
        sorted(obsolete),
        replaces,
        lines,
        summed(found.left_out),
        found.side_files,
    )


def _check_output(settings: Settings, fields: Mapping[str, str]) -> dict[str, Any] | None:
    """Refuse an output that cannot be written to, or holds something else; the content of `_dataset.json`."""
    made = read_dataset(settings.output)
    storage.check_writable(settings.output)
    check_classes(settings.output, settings.taxonomies)
    if made is not None and not settings.overwrite:
        check_same(settings.output, made["settings"], fields, (made["model"], settings.model.location))
        check_taxonomies(settings.output, made, settings.digests)
    return made


def _read_stored(settings: Settings, made: dict[str, Any] | None) -> _Stored:
    """Read the footers of the parts that are there."""
    if made is None:
        return _Stored(None)
    names = dict(sorted(part_stamps(settings.output, "embeddings").items()))
    return _Stored(made, list(names), read_footers(settings.output, "embeddings", names))


def _compare(
    settings: Settings, units: Sequence[Unit], footers: Mapping[str, Footer], dataset: str
) -> tuple[list[PlannedUnit], list[PlannedUnit]]:
    """Compare the units of the input with the parts that are there.

    Args:
        settings: the run's settings.
        units: all units of the input.
        footers: part → footer of the parts that are there.
        dataset: fingerprint of the dataset.
    Returns:
        The units of this run's share, and those of the other shares.
    """
    mine, siblings = _shared(units, *settings.share)
    known = committed_parts(settings, units, footers, dataset)
    kept = {unit.part: known[unit.part] for unit in mine if unit.part in known and _stays(settings, known[unit.part])}
    done = {part: footers[part] for part in kept}
    stale = stale_labels(settings.output, done, settings.digests, settings.top_labels)
    planned = []
    for unit in mine:
        if (footer := done.get(unit.part)) is None:
            planned.append(PlannedUnit(unit))
        else:
            obtained = "{precision} on {device}".format(**footer["provenance"])
            planned.append(PlannedUnit(unit, kept[unit.part], stale.get(unit.part, []), obtained))
    theirs = without_damaged_shards(settings, siblings, known)
    return planned, [PlannedUnit(unit, theirs.get(unit.part)) for unit in siblings]


def _shared(units: Sequence[Unit], i: int, n: int) -> tuple[list[Unit], list[Unit]]:
    """Split units into share i of n and the rest, in an order that does not depend on the order of --input."""
    if n == 1:
        return list(units), []
    plan = sorted(units, key=lambda unit: (unit.shard, unit.first_row, unit.part))
    return plan[i::n], [unit for place, unit in enumerate(plan) if place % n != i]


def _stays(settings: Settings, counts: Mapping[str, int]) -> bool:
    """Whether a committed part need not be made again."""
    retried = settings.retry_rejects and has_rejects(counts, settings.retry_rejects)
    return not counts.get("shards.rejected") and not retried


def _sort_others(
    found: Inventory, footers: Mapping[str, Footer], source_of: Mapping[str, str], dataset: str
) -> tuple[dict[str, Footer], set[str]]:
    """Sort the parts that no unit of this input makes into those that stay and those of a former cut, which go."""
    parts = {unit.part for unit in found.units}
    sources = {source_of[unit.shard] for unit in found.units}
    others = {part: footer for part, footer in footers.items() if part not in parts}
    obsolete = {
        part
        for part, footer in others.items()
        if source_of[footer["shard"]] in sources
        # A shard that we cannot read fully may not have been re-cut, so its old parts stay until it can be read.
        and not (footer["shard"] in found.unread and footer["fingerprint"] == dataset)
        # A folder that could not be listed before, and now can, is no unit any more: its files are.
        or (footer["stamp"] == UNLISTED and any(footer["shard"].startswith(f"{root}/") for root in found.roots))
    }
    return {part: footer for part, footer in others.items() if part not in obsolete}, obsolete


def _check_others(settings: Settings, stored: _Stored, others: Mapping[str, Footer], dataset: str) -> None:
    """Refuse an --overwrite that would leave parts of other settings, or of other classes, beside the new ones."""
    foreign = sorted(part for part, footer in others.items() if footer["fingerprint"] != dataset)
    if foreign:
        raise OutputError(
            f"--overwrite would leave {counted(len(foreign), 'part')} of other settings beside the new ones, such as "
            f"{foreign[0]}, since --input does not name their shards; give all of the dataset's inputs, or another "
            "--output"
        )
    if settings.overwrite:
        _refuse_half_a_taxonomy(settings, stored.made, others)


def _refuse_half_a_taxonomy(settings: Settings, made: Mapping[str, Any] | None, others: Container[str]) -> None:
    """Labels of two sets of classes must not lie under one name."""
    known = made["taxonomies"] if made else {}
    for name in [name for name, digest in settings.digests.items() if known.get(name, digest) != digest]:
        left = [part for part in part_names(settings.output, f"labels/{name}") if part in others]
        if left:
            raise OutputError(
                f"--overwrite would leave labels/{name} of other classes for {counted(len(left), 'part')} outside "
                f"--input; python -m pipelines.label --input {settings.output} --taxonomy … --overwrite labels all of "
                "them anew"
            )


def _notes(settings: Settings, found: Inventory, units: Sequence[PlannedUnit], stored: _Stored) -> list[str]:
    """Say what share of the plan this run does, which labels go, and which parts are damaged."""
    lines = []
    if settings.units:
        lines.append(f"--units {settings.units}: {len(units):,} of the {len(found.units):,} units of the plan")
    lost = sorted(taxonomy_names(settings.output) - set(settings.digests)) if stored.made is not None else []
    changed = sum(planned.unit.part in stored.footers and not planned.is_committed for planned in units)
    if lost and changed:
        lines.append(
            f"warning: {counted(changed, 'part')} will be made anew, and {'its' if changed == 1 else 'their'} "
            f"labels/{', labels/'.join(lost)} are deleted with the old embeddings; name them with --taxonomy too "
            "to have them made again"
        )
    parts = {unit.part for unit in found.units}
    damaged = [name for name in stored.names if name not in stored.footers and name not in parts]
    if damaged:
        lines.append(
            f"warning: {part_uri(settings.output, 'embeddings', damaged[0])} is not whole, and not of this run's input "
            f"({len(damaged)} such); run the command that made it again, or remove it"
        )
    return lines
