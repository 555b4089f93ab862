"""Job and plan: what the launcher tells every worker, as a few small values and files beside the output."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.fingerprint import fingerprint
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import Unit

_TASKS_PER_WORKER = 4
_MAX_UNITS_PER_TASK = 64


_ARROW = {"str": pa.string(), "int": pa.int64()}
PLAN = pa.schema(
    [
        *((f.name, _ARROW[f.type]) for f in dataclasses.fields(Unit)),
        ("counts", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("obtained", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is told: small, and the same for all.

    Attributes:
        settings: of the run, without the taxonomies' texts, which lie beside the plan.
        run: its id.
        folder: URI of `output/_temporary/<run>`, with `plan.parquet`.
        checkpoint: resolved.
        fields: of the fingerprint.
        taxonomies: name → digest.
        other_taxonomies: names of those that earlier runs labelled with and this one does not.
        units: of this run, which lie first in the plan.
        siblings: units of the plan that other runs do, which lie behind them.
        pending: of this run's, how many are still to be embedded; they lie first of all.
        unlabelled: how many others lack labels.
        workers: that the runner's options name.
        others: counts of the parts that are in the dataset but not in this run's input.
        other_parts: their number.
        command: as it was typed.
        launcher: process id; a worker that it started ends with it.
        started: seconds since 1970.
    """

    settings: Settings
    run: str
    folder: str
    checkpoint: Checkpoint
    fields: Mapping[str, str]
    taxonomies: Mapping[str, str]
    other_taxonomies: Sequence[str]
    units: int
    siblings: int
    pending: int
    unlabelled: int
    workers: int
    others: Mapping[str, int]
    other_parts: int
    command: Sequence[str]
    launcher: int
    started: float

    @property
    def output(self) -> str:
        """URI of the dataset."""
        return self.settings.output

    @property
    def plan_uri(self) -> str:
        """Where the plan lies."""
        return storage.join(self.folder, "plan.parquet")

    @property
    def fingerprint(self) -> str:
        """Of the dataset."""
        return fingerprint(self.fields)

    def tasks(self) -> list[tuple[int, int]]:
        """Consecutive units that go to a worker together, as rows of the plan: [start, stop).

        What is to be embedded is cut apart from the rest, or after a run that was killed at its end one worker would
        get all of it.
        """
        return [*self._cut(0, self.pending), *self._cut(self.pending, self.units)]

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        units = stop - start
        count = min(units, max(_TASKS_PER_WORKER * self.workers, -(-units // _MAX_UNITS_PER_TASK)))
        edges = [start + units * i // max(1, count) for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))


@functools.lru_cache(maxsize=2)
def _read_plan(uri: str) -> pa.Table:
    with storage.open_input(uri) as file:
        return pq.ParquetFile(file).read(use_threads=False)


@dataclasses.dataclass(frozen=True)
class PlannedUnit:
    """A row of the plan.

    Attributes:
        unit: what to read.
        counts: of its part, if an earlier run committed it; else None.
        labels: taxonomies whose labels are to be made from its stored embeddings.
        obtained: precision and device of its part, if it is committed.
    """

    unit: Unit
    counts: Counter | None
    labels: list[str]
    obtained: str


def read_units(job: Job, start: int, stop: int) -> list[PlannedUnit]:
    """The units of a task."""
    planned = []
    for row in _read_plan(job.plan_uri).slice(start, stop - start).to_pylist():
        counts, labels, obtained = (row.pop(name) for name in ("counts", "labels", "obtained"))
        counts = None if counts is None else Counter(json.loads(counts))
        planned.append(PlannedUnit(Unit(**row), counts, labels, obtained))
    return planned


def read_taxonomies(job: Job) -> list[Taxonomy]:
    """The taxonomies of the run, with their texts."""
    contents = json.loads(storage.read_bytes(storage.join(job.folder, "taxonomies.json")))
    return [Taxonomy.from_json(name, content) for name, content in contents.items()]
