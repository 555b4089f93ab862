"""Job: what the launcher tells every worker, as a few small values and a plan in a file beside the output."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.fingerprint import fingerprint
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import Unit

_TASKS_PER_WORKER = 4
_MAX_UNITS_PER_TASK = 64  # for each feeder, if there are some
_UNITS_A_FEEDER = 4  # at least, in a task: at its end feeders wait for the last one
PLAN_ROWS = 4_096  # rows of a row group of the plan

_ARROW = {"str": pa.string(), "int": pa.int64()}
PLANNED_UNITS = pa.schema(
    [
        *((f.name, _ARROW[str(f.type)]) for f in dataclasses.fields(Unit)),
        ("counts", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("obtained", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class PlannedUnit:
    """A unit, and what is known of its part. In `plan.parquet` it is one row.

    Attributes:
        unit: the unit.
        counts: the counts of its part if an earlier run committed it and it stays; None if it must be embedded.
        labels: taxonomies whose labels must be made from its stored embeddings.
        obtained: precision and device of its part, such as `fp32 on cpu`; empty if it must be embedded.
    """

    unit: Unit
    counts: Mapping[str, int] | None = None
    labels: Sequence[str] = ()
    obtained: str = ""

    @property
    def is_committed(self) -> bool:
        """Whether an earlier run committed its part, and the part stays."""
        return self.counts is not None


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is told. It is small, and the same for all.

    Attributes:
        settings: the run's settings, without the texts of the taxonomies, which lie beside the plan, and with the first
            of the inputs alone.
        run: the run's id.
        folder: URI of `output/_temporary/<run>`, which holds `plan.parquet`.
        checkpoint: the resolved checkpoint.
        fields: the fields of the fingerprint.
        taxonomies: name → digest of the taxonomies that this run labels with.
        other_kinds: kinds of parts that only earlier runs made: `labels/<taxonomy>`, and `captions`.
        units: number of units of this run. They are the first rows of the plan; units of other shares follow.
        pending: number of units to embed. They come first among this run's units.
        workers: number of workers that the runner's options ask for; 0 if the launcher does everything alone.
        feeders: number of feeders of each worker.
        launcher: process id of the launcher; a worker process that it started ends with it.
    """

    settings: Settings
    run: str
    folder: str
    checkpoint: Checkpoint
    fields: Mapping[str, str]
    taxonomies: Mapping[str, str]
    other_kinds: Sequence[str]
    units: int
    pending: int
    workers: int
    feeders: int
    launcher: int

    @property
    def output(self) -> str:
        """URI of the dataset."""
        return self.settings.output

    @property
    def kinds(self) -> list[str]:
        """Kinds of parts that a unit has in this run."""
        return ["embeddings", *self.settings.kinds, *(f"labels/{name}" for name in self.taxonomies)]

    @property
    def plan_uri(self) -> str:
        """URI of the plan."""
        return storage.join(self.folder, "plan.parquet")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset, 32 hex digits."""
        return fingerprint(self.fields)

    def tasks(self) -> list[tuple[int, int]]:
        """Cut this run's units into tasks: ranges [start, stop) of rows of the plan.

        Pending units and committed ones never share a task. Otherwise, after a run that was killed near its end, one
        worker would get all of the pending units.
        """
        return [*self._cut(0, self.pending), *self._cut(self.pending, self.units)]

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        units = stop - start
        count = max(_TASKS_PER_WORKER * self.workers, -(-units // (_MAX_UNITS_PER_TASK * max(1, self.feeders))))
        if self.feeders:
            count = min(count, max(1, self.workers, units // (_UNITS_A_FEEDER * self.feeders)))
        count = min(units, count)
        edges = [start + units * i // max(1, count) for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))


@functools.lru_cache(maxsize=4)
def _read_rows(uri: str, group: int) -> pa.Table:
    """Read a row group of a plan. A worker never holds all of it, which for a million units would be 400 MB."""
    with storage.open_input(uri) as file:
        return pq.ParquetFile(file).read_row_group(group, use_threads=False)


def read_units(job: Job, start: int, stop: int) -> list[PlannedUnit]:
    """Read the units in rows [start, stop) of the plan."""
    planned = []
    for group in range(start // PLAN_ROWS, -(-stop // PLAN_ROWS)):
        first = group * PLAN_ROWS
        skipped = max(0, start - first)
        rows = _read_rows(job.plan_uri, group).slice(skipped, stop - first - skipped)
        for *unit, counts, labels, obtained in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            planned.append(PlannedUnit(Unit(*unit), None if counts is None else json.loads(counts), labels, obtained))
    return planned


def read_taxonomies(folder: str) -> list[Taxonomy]:
    """Read the taxonomies of a run, with their texts, from its folder."""
    contents = json.loads(storage.read_bytes(storage.join(folder, "taxonomies.json")))
    return [Taxonomy.from_json(name, content) for name, content in contents.items()]


def write_taxonomies(folder: str, taxonomies: Sequence[Taxonomy]) -> None:
    """Write taxonomies into a run's folder, where `read_taxonomies` finds them."""
    contents = {taxonomy.name: taxonomy.to_json() for taxonomy in taxonomies}
    storage.write_bytes(storage.join(folder, "taxonomies.json"), json.dumps(contents).encode(), folder)
