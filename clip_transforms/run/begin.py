"""On the launcher: a plan becomes a run. Writes the plan, what goes beside it, and what the dataset says of itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Container, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.counts import add
from clip_transforms.parts.dataset import (
    check_taxonomies,
    clear_success,
    read_dataset,
    without_secrets,
    write_dataset,
)
from clip_transforms.parts.fingerprint import check_same
from clip_transforms.parts.footers import taxonomy_names
from clip_transforms.parts.writer import make_folders
from clip_transforms.run.folder import RunFolder, new_run_id
from clip_transforms.run.job import PLAN, Job
from clip_transforms.run.plan import RunPlan
from clip_transforms.shards.inventory import RowList
from clip_transforms.shards.unit import Unit


def begin_run(plan: RunPlan, workers: int, command: Sequence[str], detached: bool = False) -> tuple[Job, RunFolder]:
    """Write the plan beside the output, and hold its folder.

    Args:
        plan: of the run.
        workers: that the runner's options name.
        command: as it was typed, for run.json.
        detached: whether the run goes on without this process.
    Raises:
        FingerprintError: if another run began meanwhile, with other settings.
    """
    run = new_run_id()
    folder = RunFolder(plan.settings.output, run, detached)
    try:
        with folder.alone():
            return _write(plan, folder, run, workers, command), folder
    except BaseException:
        folder.close()
        raise


def _write(plan: RunPlan, folder: RunFolder, run: str, workers: int, command: Sequence[str]) -> Job:
    settings = plan.settings
    made = read_dataset(settings.output)
    digests = {taxonomy.name: taxonomy.digest for taxonomy in settings.taxonomies}
    if made is not None and not settings.overwrite:  # again: another run may have begun since this was planned
        check_same(settings.output, made["settings"], plan.fields)
        check_taxonomies(settings.output, made, digests)
    taxonomies = {**(made["taxonomies"] if made else {}), **digests}
    if made is None or made["settings"] != plan.fields or made["taxonomies"] != taxonomies:
        write_dataset(settings.output, plan.fields, settings.model.location, taxonomies, folder.uri)
    make_folders(settings.output, [taxonomy.name for taxonomy in settings.taxonomies])
    if plan.pending or plan.stale or plan.obsolete or plan.waiting:
        clear_success(settings.output)
    pending = {unit.part for unit in plan.units if unit.part not in plan.committed}
    for name in sorted({unit.uri for unit in plan.units if unit.part in pending and unit.uri in plan.lists}):
        _write_list(folder.uri, name, plan.lists[name], pending)
    taxonomies = {taxonomy.name: taxonomy.to_json() for taxonomy in settings.taxonomies}
    storage.write_bytes(storage.join(folder.uri, "taxonomies.json"), json.dumps(taxonomies).encode(), folder.uri)
    storage.write_bytes(storage.join(folder.uri, "obsolete.json"), json.dumps(plan.obsolete).encode(), folder.uri)
    job = Job(
        settings=dataclasses.replace(settings, taxonomies=()),
        run=run,
        folder=folder.uri,
        checkpoint=plan.checkpoint,
        fields=plan.fields,
        taxonomies={taxonomy.name: taxonomy.digest for taxonomy in settings.taxonomies},
        other_taxonomies=sorted(taxonomy_names(settings.output) - {t.name for t in settings.taxonomies}),
        units=len(plan.units),
        siblings=len(plan.siblings),
        pending=plan.pending,
        unlabelled=len(plan.stale),
        workers=workers,
        others=add(footer["counts"] for footer in plan.others.values()),
        other_parts=len(plan.others),
        command=without_secrets(command),
        launcher=os.getpid(),
        started=time.time(),
    )
    _write_table(folder.uri, "plan.parquet", _table(plan))
    return job


def _table(plan: RunPlan) -> pa.Table:
    """The plan, in the order that `Job` describes."""
    units = [*sorted(plan.units, key=lambda unit: unit.part in plan.committed), *plan.siblings]
    parts = [unit.part for unit in units]
    counts = {part: json.dumps(counts) for part, counts in plan.committed.items()}
    columns = {
        **{f.name: [getattr(unit, f.name) for unit in units] for f in dataclasses.fields(Unit)},
        "counts": [counts.get(part) for part in parts],
        "labels": [plan.stale.get(part, []) for part in parts],
        "obtained": [plan.obtained.get(part, "") for part in parts],
    }
    return pa.table(columns, schema=PLAN)


def _write_list(folder: str, name: str, rows: RowList, wanted: Container[str]) -> None:
    """Write a list beside the plan, one row group at a time: it may be larger than memory."""
    handle, local = tempfile.mkstemp(dir=folder if storage.is_local(folder) else None)
    os.close(handle)
    try:
        with pq.ParquetWriter(local, rows.schema) as writer:
            for table in rows.tables(wanted):
                writer.write_table(table)
        storage.commit_file(local, storage.join(folder, name))
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was moved
            os.unlink(local)


def _write_table(folder: str, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(folder, name), sink.getvalue().to_pybytes(), folder)
