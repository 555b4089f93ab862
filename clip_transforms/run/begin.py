"""On the launcher: a plan becomes a run. Writes the plan, the files beside it, and what the dataset says of itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.parts.fingerprint import check_same
from clip_transforms.parts.footers import has_captions, taxonomy_names
from clip_transforms.parts.manifest import check_taxonomies, clear_success, make_folders, read_dataset, write_dataset
from clip_transforms.run.job import PLAN_ROWS, PLANNED_UNITS, Job, write_taxonomies
from clip_transforms.run.plan import RunPlan
from clip_transforms.run.run_folder import RunFolder, new_run_id, writing
from clip_transforms.run.settings import Settings
from clip_transforms.shards.side_file import write_side_file
from clip_transforms.shards.unit import Unit

_SECRET_FLAG = re.compile("secret|password|token|credential|access_key|connection_string")


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What only the end of a run needs to know: `begin.json` beside the plan.

    Attributes:
        started: seconds since 1970.
        command: the command line, without secrets.
        siblings: number of units in the plan that belong to the shares of other runs.
        others: sum of the counts of the parts that are not made from this run's input.
        other_parts: number of these parts.
        obsolete: parts of a former cut, which go when everything is committed.
        left_out: what the inputs hold besides and is not read: kind → (number, name of the first).
    """

    started: float
    command: Sequence[str]
    siblings: int
    others: Mapping[str, int]
    other_parts: int
    obsolete: Sequence[str]
    left_out: Mapping[str, Sequence[Any]]

    def write(self, folder: str) -> None:
        """Write it into the run's folder."""
        storage.write_bytes(storage.join(folder, "begin.json"), json.dumps(vars(self)).encode(), folder)

    @classmethod
    def read(cls, folder: str) -> Beginning:
        """Read it from the run's folder."""
        return cls(**json.loads(storage.read_bytes(storage.join(folder, "begin.json"))))


def begin_run(
    plan: RunPlan, workers: int, command: Sequence[str], detached: bool = False, feeders: int = 0
) -> tuple[Job, RunFolder]:
    """Write the plan beside the output, and lock its folder.

    Args:
        plan: the plan.
        workers: number of workers that the runner's options ask for; 0 if this process does everything alone.
        command: the command line, for run.json.
        detached: whether the run goes on without this process.
        feeders: number of feeders of each worker.
    Raises:
        FingerprintError: if another run began in the meantime, with other settings.
        PlanError: if a listing was changed in the meantime.
        BeginError: if the output fails once something was written. After any other error nothing is left in a new one.
    """
    run = new_run_id()
    folder = RunFolder(plan.settings.output, run, detached)
    try:
        with folder.alone():
            made = _check_again(plan)
            job = _job(plan, run, folder.uri, workers, feeders)
            _write_plan(plan, job, command)
            with writing():
                _begin_dataset(plan, made, folder)
            return job, folder
    except BaseException:
        folder.close()
        raise


def _check_again(plan: RunPlan) -> dict[str, Any] | None:
    """Check once more, since another run may have begun after planning; the content of `_dataset.json`."""
    settings = plan.settings
    made = read_dataset(settings.output)
    if made is not None and not settings.overwrite:
        check_same(settings.output, made["settings"], plan.fields, (made["model"], settings.model.location))
        check_taxonomies(settings.output, made, settings.digests)
    return made


def _begin_dataset(plan: RunPlan, made: Mapping[str, Any] | None, folder: RunFolder) -> None:
    """Write `_dataset.json` where it changes, make the folders, and remove `_SUCCESS` if the run changes anything."""
    settings = plan.settings
    taxonomies = {**(made["taxonomies"] if made else {}), **settings.digests}
    if made is None or made["settings"] != plan.fields or made["taxonomies"] != taxonomies:
        write_dataset(settings.output, plan.fields, settings.model.location, taxonomies, folder.uri)
    make_folders(settings.output, [*settings.kinds, *(f"labels/{name}" for name in settings.digests)])
    waits = any(not planned.is_committed for planned in plan.siblings)
    if plan.pending or plan.unlabelled or plan.obsolete or waits:
        clear_success(settings.output)


def _job(plan: RunPlan, run: str, folder: str, workers: int, feeders: int) -> Job:
    settings = plan.settings
    return Job(
        # Of the inputs one is enough, since workers read the plan: a runner's graph has no room for 100,000 names.
        settings=dataclasses.replace(settings, taxonomies=(), inputs=settings.inputs[:1]),
        run=run,
        folder=folder,
        checkpoint=plan.checkpoint,
        fields=plan.fields,
        taxonomies=settings.digests,
        other_kinds=_other_kinds(settings),
        units=len(plan.units),
        pending=len(plan.pending),
        workers=workers,
        feeders=feeders,
        launcher=os.getpid(),
    )


def _other_kinds(settings: Settings) -> list[str]:
    """Return the kinds of parts that earlier runs made and this one does not."""
    kinds = [f"labels/{name}" for name in sorted(taxonomy_names(settings.output) - set(settings.digests))]
    return [*kinds, *(["captions"] if "captions" not in settings.kinds and has_captions(settings.output) else [])]


def _write_plan(plan: RunPlan, job: Job, command: Sequence[str]) -> None:
    pending = {unit.part for unit in plan.pending}
    for name in sorted({unit.uri for unit in plan.pending if unit.uri in plan.side_files}):
        write_side_file(job.folder, name, plan.side_files[name], pending)
    # Without work that needs them no text tower is loaded.
    write_taxonomies(job.folder, plan.settings.taxonomies if plan.pending or plan.unlabelled else ())
    Beginning(
        started=time.time(),
        command=without_secrets(command),
        siblings=len(plan.siblings),
        others=add(footer["counts"] for footer in plan.others.values()),
        other_parts=len(plan.others),
        obsolete=plan.obsolete,
        left_out=plan.left_out,
    ).write(job.folder)
    sink = pa.BufferOutputStream()
    pq.write_table(_table(plan), sink, row_group_size=PLAN_ROWS)
    storage.write_bytes(job.plan_uri, sink.getvalue().to_pybytes(), job.folder)


def _table(plan: RunPlan) -> pa.Table:
    """The plan, in the order that `Job` describes."""
    units = [*sorted(plan.units, key=lambda planned: planned.is_committed), *plan.siblings]
    columns = {
        **{f.name: [getattr(planned.unit, f.name) for planned in units] for f in dataclasses.fields(Unit)},
        "counts": [None if planned.counts is None else json.dumps(planned.counts) for planned in units],
        "labels": [list(planned.labels) for planned in units],
        "obtained": [planned.obtained for planned in units],
    }
    return pa.table(columns, schema=PLANNED_UNITS)


def without_secrets(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without the values of flags for keys and passwords, which some runners have."""
    shown, secret = [], False
    for word in command:
        flag, equals, _ = word.partition("=")
        if word.startswith("--"):
            secret = bool(_SECRET_FLAG.search(flag))
            shown.append(f"{flag}=…" if secret and equals else word)
            secret = secret and not equals
        else:
            shown.append("…" if secret else word)
    return tuple(shown)
