"""On the launcher: settings → the plan of a run. Finds, hashes, compares, lists; reads no image and needs no torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import posixpath
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint, ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy, check_names
from clip_transforms.label_part import changed_taxonomies, stale_labels
from clip_transforms.parts import reader
from clip_transforms.parts.counts import add
from clip_transforms.parts.fingerprint import check_same, fingerprint
from clip_transforms.parts.run_folder import RunFolder, new_run_id
from clip_transforms.parts.run_manifest import OutputError, clear_success, read_dataset_fields, write_dataset
from clip_transforms.parts.writer import make_folders
from clip_transforms.shards.plan import plan_units
from clip_transforms.shards.unit import ReaderOptions, Unit
from schemas.embeddings import EMBEDDING_DTYPES
from schemas.provenance import Footer

_TASKS_PER_WORKER = 4
_MAX_UNITS_PER_TASK = 64
# What the readers, the preprocessing and the tokenizer do is named here, so that a dataset tells when it changed.
_PREPROCESSING = "short side bicubic in Pillow, centre crop, RGB, published mean and std"
_TOKENIZER = "bpe_simple_vocab_16e6, 924691ac288e5440"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the person who starts a run decides; checked when it is built.

    Attributes:
        inputs: see `shards.plan.plan_units`.
        output: URI of the dataset.
        model: the checkpoint.
        taxonomies: to label with.
        reader: what the readers are told.
        embedding_dtype: `float32` or `float16`.
        top_labels: length of a label's `top`.
        batch_size: samples that go through the model together.
        max_reject_fraction: of images and captions apart, beyond which there is no `_SUCCESS`.
        allow_damaged_shards: whether there is one though a shard could not be read to its end.
        overwrite: whether a dataset made with other settings may be replaced.
    """

    inputs: tuple[str, ...]
    output: str
    model: ClipSpec
    taxonomies: tuple[Taxonomy, ...] = ()
    reader: ReaderOptions = dataclasses.field(default_factory=ReaderOptions)
    embedding_dtype: str = "float32"
    top_labels: int = 5
    batch_size: int = 32
    max_reject_fraction: float = 0.05
    allow_damaged_shards: bool = False
    overwrite: bool = False

    def __post_init__(self):
        """Refuse a wrong setting on the launcher, not on a worker after an hour."""
        if not self.inputs:
            raise ValueError("--input is empty; name at least one folder, tar, Parquet file or pattern")
        if self.embedding_dtype not in EMBEDDING_DTYPES:
            allowed = " or ".join(EMBEDDING_DTYPES)
            raise ValueError(f"--embedding_dtype is {self.embedding_dtype!r}, but it must be {allowed}")
        for flag, value in (("top_labels", self.top_labels), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"--{flag} is {value}, but it must be 1 or more")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"--max_reject_fraction is {self.max_reject_fraction}, but it is a fraction of the samples and must "
                "lie in [0, 1]"
            )
        check_names(self.taxonomies)

    def fingerprint_fields(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What decides the numbers of the dataset, by name."""
        reader_fields = {
            k: v for k, v in dataclasses.asdict(self.reader).items() if k not in ("input_format", "columns")
        }
        columns = [f"{c.name}={c.field}:{c.type}" for c in self.reader.columns]
        return {
            "model": checkpoint.sha256,
            "activation": checkpoint.activation,
            "precision": self.model.precision,
            "preprocessing": _PREPROCESSING,
            "tokenizer": _TOKENIZER,
            "embedding_dtype": self.embedding_dtype,
            "columns": " ".join(columns),
            **{name: str(value or "") for name, value in reader_fields.items()},
        }


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
        units: of the plan.
        pending: of these, how many are still to be embedded.
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
    units: int
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
        """Consecutive units that go to a worker together, as rows of the plan: [start, stop)."""
        wanted = max(_TASKS_PER_WORKER * self.workers, -(-self.units // _MAX_UNITS_PER_TASK))
        count = max(1, min(wanted, self.units))
        edges = [self.units * i // count for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))


@dataclasses.dataclass
class RunPlan:
    """A run that could start.

    Attributes:
        settings, checkpoint, fields: as in Job.
        units: of this run's input.
        committed: part → counts, of units that an earlier run committed.
        stale: part → taxonomies, of committed units whose labels are to be made.
        others: part → footer, of parts that are not in this run's input.
        detection: lines that say what was taken from the input and what was not.
        lists: name → list of files, for folder units.
    """

    settings: Settings
    checkpoint: Checkpoint
    fields: dict[str, str]
    units: list[Unit]
    committed: dict[str, Counter]
    stale: dict[str, list[str]]
    others: dict[str, Footer]
    detection: list[str]
    lists: dict[str, pa.Table]

    @property
    def pending(self) -> int:
        """How many units are still to be embedded."""
        return len(self.units) - len(self.committed)

    def begin(self, workers: int, command: Sequence[str], detached: bool = False) -> tuple[Job, RunFolder]:
        """Write the plan beside the output, and hold its folder.

        Args:
            workers: that the runner's options name.
            command: as it was typed, for run.json.
            detached: whether the run goes on without this process.
        Raises:
            FingerprintError: if another run began meanwhile, with other settings.
        """
        run = new_run_id()
        folder = RunFolder(self.settings.output, run, detached)
        try:
            with folder.alone():
                return self._write(folder, run, workers, command), folder
        except BaseException:
            folder.close()
            raise

    def _write(self, folder: RunFolder, run: str, workers: int, command: Sequence[str]) -> Job:
        settings = self.settings
        old = read_dataset_fields(settings.output)
        if old is not None and not settings.overwrite:
            check_same(settings.output, old, self.fields)  # again: another run may have begun since this was planned
        if old != self.fields:
            write_dataset(settings.output, self.fields, settings.model.location)
        make_folders(settings.output, [taxonomy.name for taxonomy in settings.taxonomies])
        if self.pending or self.stale:
            clear_success(settings.output)
        for name, table in self.lists.items():
            _write_table(storage.join(folder.uri, name), table)
        taxonomies = {taxonomy.name: taxonomy.to_json() for taxonomy in settings.taxonomies}
        storage.write_bytes(storage.join(folder.uri, "taxonomies.json"), json.dumps(taxonomies).encode())
        job = Job(
            settings=dataclasses.replace(settings, taxonomies=()),
            run=run,
            folder=folder.uri,
            checkpoint=self.checkpoint,
            fields=self.fields,
            taxonomies={taxonomy.name: taxonomy.digest for taxonomy in settings.taxonomies},
            units=len(self.units),
            pending=self.pending,
            unlabelled=len(self.stale),
            workers=workers,
            others=add(footer["counts"] for footer in self.others.values()),
            other_parts=len(self.others),
            command=tuple(command),
            launcher=os.getpid(),
            started=time.time(),
        )
        _write_table(job.plan_uri, self._table())
        return job

    def _table(self) -> pa.Table:
        rows = [dataclasses.asdict(unit) for unit in self.units]
        for row in rows:
            counts = self.committed.get(row["part"])
            row["counts"] = None if counts is None else json.dumps(counts)
            row["labels"] = self.stale.get(row["part"], [])
        return pa.Table.from_pylist(rows, schema=_PLAN)


_ARROW = {"str": pa.string(), "int": pa.int64()}
_PLAN = pa.schema(
    [
        *((f.name, _ARROW[f.type]) for f in dataclasses.fields(Unit)),
        ("counts", pa.string()),
        ("labels", pa.list_(pa.string())),
    ]
)


def plan_run(settings: Settings) -> RunPlan:
    """Find what is to be done.

    Args:
        settings: of the run.
    Raises:
        ValueError: one of its kinds, with one sentence for the person who wrote the settings.
    """
    settings = dataclasses.replace(settings, output=storage.normalise(settings.output))
    checkpoint = settings.model.resolve()
    fields = settings.fingerprint_fields(checkpoint)
    old = read_dataset_fields(settings.output)
    if old is not None and not settings.overwrite:
        check_same(settings.output, old, fields)
    found = plan_units(settings.inputs, settings.reader)
    names = sorted(reader.part_names(settings.output, "embeddings")) if old is not None else []
    footers = reader.read_footers(settings.output, "embeddings", names)
    committed = _committed(settings, found.units, footers, fingerprint(fields))
    parts = {unit.part for unit in found.units}
    others = {part: footer for part, footer in footers.items() if part not in parts}
    foreign = sorted(part for part, footer in others.items() if footer["fingerprint"] != fingerprint(fields))
    if foreign:
        raise OutputError(
            f"--overwrite would leave {len(foreign)} parts of other settings that are not in --input, {foreign[0]} "
            "among them; give all of the dataset's inputs, or another --output"
        )
    digests = {taxonomy.name: taxonomy.digest for taxonomy in settings.taxonomies}
    check_taxonomies(settings.output, digests, settings.overwrite)
    done = {part: footers[part] for part in committed}
    stale = stale_labels(settings.output, done, digests, settings.top_labels)
    lines = [*found.detection, *_doubles(found.units, others)]
    return RunPlan(settings, checkpoint, fields, found.units, committed, stale, others, lines, found.lists)


def _doubles(units: Sequence[Unit], others: Mapping[str, Footer]) -> list[str]:
    """One warning line where a new shard looks like one that is in the dataset under another URI."""
    known = {_looks(footer["shard"], footer["stamp"]): footer["shard"] for footer in others.values()}
    alike = [(u.shard, known[_looks(u.shard, u.stamp)]) for u in units if _looks(u.shard, u.stamp) in known]
    alike = [(new, old) for new, old in alike if new != old]
    if not alike:
        return []
    new, old = alike[0]
    return [
        f"warning: {new} has the name and size of {old}, which is in the dataset already ({len(alike)} such units); if "
        "it was moved, its rows will be there twice"
    ]


def _looks(shard: str, stamp: str) -> tuple[str, str]:
    """File name and size, for a shard that is a file; a folder's stamp is a hash of its files' names and times."""
    return posixpath.basename(shard.partition("#")[0]), stamp.partition("-")[0]


def _committed(
    settings: Settings, units: Sequence[Unit], footers: Mapping[str, Footer], expected: str
) -> dict[str, Counter]:
    """Part → counts of the units that need not be done again."""
    rejects = reader.part_sizes(settings.output, "rejects") if footers else {}
    return {
        unit.part: Counter(footer["counts"])
        for unit in units
        if (footer := footers.get(unit.part))
        and footer["fingerprint"] == expected
        and (footer["shard"], footer["stamp"]) == (unit.shard, unit.stamp)
        and rejects.get(unit.part) == footer["rejects_bytes"]
        and not footer["counts"].get("shards.rejected")
    }


def check_taxonomies(output: str, digests: Mapping[str, str], overwrite: bool) -> None:
    """Refuse classes under a name that means others in the dataset.

    Raises:
        OutputError: naming the taxonomy, unless `overwrite`.
    """
    changed = [] if overwrite else changed_taxonomies(output, digests)
    if changed:
        raise OutputError(
            f"--taxonomy {changed[0]} has other classes, prompts or templates than the one of that name in {output}; "
            "rename the file, or give --overwrite to label everything anew"
        )


def _write_table(uri: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


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
    """

    unit: Unit
    counts: Counter | None
    labels: list[str]


def read_units(job: Job, start: int, stop: int) -> list[PlannedUnit]:
    """The units of a task."""
    planned = []
    for row in _read_plan(job.plan_uri).slice(start, stop - start).to_pylist():
        counts, labels = row.pop("counts"), row.pop("labels")
        planned.append(PlannedUnit(Unit(**row), None if counts is None else Counter(json.loads(counts)), labels))
    return planned


def read_taxonomies(job: Job) -> list[Taxonomy]:
    """The taxonomies of the run, with their texts."""
    contents = json.loads(storage.read_bytes(storage.join(job.folder, "taxonomies.json")))
    return [Taxonomy.from_json(name, content) for name, content in contents.items()]
