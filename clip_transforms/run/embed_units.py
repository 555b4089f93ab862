"""What a worker does with a task: shards → engine → parts. These are plain functions; they do not use Beam."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.labels.batch import Classifier, label_batch
from clip_transforms.labels.classes import embed_classes, read_classifier
from clip_transforms.labels.part import label_part, labels_footers
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.kept_footers import keep_footers
from clip_transforms.parts.writer import PartSettings, UnitWriter
from clip_transforms.run.feeders import Feeders
from clip_transforms.run.job import Job, PlannedUnit, read_taxonomies, read_units
from clip_transforms.run.summary import PartResult, versions
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ShardError, Unit
from clip_transforms.workers.machine import cores_of, give_back_memory
from schemas.captions import captions_schema
from schemas.embeddings import embeddings_schema
from schemas.provenance import Footer
from schemas.samples import NUM_CAPTIONS

# Units, samples and source bytes that this process has done so far. A progress bar in the same process reads them.
PROGRESS: Counter = Counter()
MAX_WAITING_BYTES = 16 << 20  # limit for embedded rows that wait for the writer
_TRIM_SECONDS = 5.0  # free memory is given back this often; each time takes some milliseconds


def embed_run_classes(job: Job) -> dict[str, str]:
    """Embed the classes of the run's taxonomies, unless an earlier run did; taxonomy → URI of its class embeddings."""
    taxonomies = read_taxonomies(job.folder)
    return embed_classes(job.output, taxonomies, job.checkpoint, job.settings.model.device, job.folder)


def load_embedder(job: Job) -> Any:
    """Load the model of this process, and let torch use this process's share of the cores."""
    cores, spec = cores_of(job.launcher, job.workers), job.settings.model
    feeders = Feeders(job.feeders) if job.feeders else None

    import torch  # not at the top: the launcher imports this module and needs no torch

    from clip_transforms.clip.checkpoints import load_checkpoint
    from clip_transforms.engine.forward import Embedder

    torch.set_num_threads(cores)
    embedder = Embedder(load_checkpoint(job.checkpoint, spec.device, spec.precision), job.settings.batch_size)
    if feeders is not None and (job.settings.feeders or embedder.model.device.type == "cuda"):
        feeders.lend(job, embedder.caller, embedder.batch_size, cores)
        embedder.feeders = feeders
    return embedder


def embed_task(task: tuple[int, int], job: Job, embedder: Any, classes: Mapping[str, str]) -> Iterator[PartResult]:
    """Do a range of units of the plan: embed the pending ones, and label the committed ones where they lack labels."""
    pending, changed = [], []
    for planned in read_units(job, *task):
        if planned.labels or not planned.is_committed:
            changed.append(planned.unit.part)
        if planned.is_committed:
            yield _keep(planned, job, classes)
        else:
            pending.append(planned.unit)
    if len(pending) > 1 and embedder.feeders:
        yield from embedder.feeders.embed(pending, classes, PROGRESS)
    elif pending:
        yield from embed_units(pending, job, embedder, classes, cores_of(job.launcher, job.workers))
    if changed:
        keep_footers(job.output, job.kinds, changed)


def _keep(planned: PlannedUnit, job: Job, classes: Mapping[str, str]) -> PartResult:
    """Make the labels that a committed unit lacks from its stored embeddings; its result."""
    part = planned.unit.part
    assert planned.counts is not None
    if planned.labels:
        wanted = {name: classes[name] for name in planned.labels}
        label_part(job.output, job.folder, part, wanted, label_footers(job), job.settings.top_labels)
    PROGRESS["units"] += 1
    counts = dict(planned.counts)
    return PartResult(
        part_uri(job.output, "embeddings", part),
        counts,
        {},
        planned.obtained,
        skipped=True,
        labelled=bool(planned.labels),
    )


def label_footers(job: Job) -> dict[str, Footer]:
    """Taxonomy → the entries that only its labels parts have in their footers."""
    return labels_footers(job.taxonomies, job.settings.top_labels)


@dataclasses.dataclass(frozen=True)
class _UnitEnd:
    """The mark that follows the last batch of a unit.

    Attributes:
        unit: place of the unit in its task.
        samples: number of samples that the reader counted.
        captions: number of all captions that the reader counted; None without `--captions all`.
        notes: counts of things worth telling.
        error: why the shard could not be read to its end, if it could not.
    """

    unit: int
    samples: int
    captions: int | None
    notes: Counter
    error: ShardError | None


def embed_units(
    units: Iterable[Unit],
    job: Job,
    embedder: Any,
    classes: Mapping[str, str],
    cores: int,
    stop: Callable[[], object] = lambda: None,
) -> Iterator[PartResult]:
    """Embed the units of a task and commit the part of each. The stages before writing run ahead, even across units.

    Args:
        units: the units to embed; a thread takes each when it is about to read it.
        job: the run.
        embedder: the process's `engine.forward.Embedder`.
        classes: taxonomy → URI of its class embeddings.
        cores: number of threads that decode.
        stop: is called before an error ends the threads, so that none waits for a unit.
    Yields:
        A PartResult as soon as a unit is committed.
    Raises:
        BalanceError: if samples were lost.
    """
    from clip_transforms.engine.ahead import Ahead
    from clip_transforms.engine.decode import DecodeAhead
    from clip_transforms.engine.rows import finish_batch

    settings = _part_settings(job, embedder)
    classifiers = {name: read_classifier(uri, job.taxonomies[name]) for name, uri in classes.items()}
    seconds: defaultdict[str, float] = defaultdict(float)
    told: dict[str, float] = {}
    start = time.perf_counter()
    begun: collections.deque[Unit] = collections.deque()
    decoded = DecodeAhead(
        _read(units, begun, job, embedder.batch_size),
        embedder.model.preprocessing,
        embedder.ceiling,
        cores,
        seconds,
        job.settings.max_image_pixels,
        room=embedder.caller.room,
    )
    embedded = Ahead(
        embedder.forward(_watched(decoded), seconds),
        "embed",
        room=lambda: MAX_WAITING_BYTES,
        size=lambda item: getattr(item, "num_bytes", 0),
        seconds=seconds,
    )
    # An error closes the stream at once, too.
    with contextlib.closing(iter(embedded)) as items, contextlib.ExitStack() as before_that:
        before_that.callback(stop)
        for _, of_unit in itertools.groupby(items, key=operator.attrgetter("unit")):
            unit = begun.popleft()
            finish = functools.partial(
                finish_batch,
                shard=unit.shard,
                schema=settings.embeddings_schema,
                captions_schema=settings.captions_schema,
            )
            label = functools.partial(_label, classifiers=classifiers, top_labels=job.settings.top_labels)
            with UnitWriter(settings, unit.part, _facts(unit)) as writer:
                counts = _write_unit(of_unit, unit, writer, finish, label)
            PROGRESS["units"] += 1
            now = {**seconds, "task": time.perf_counter() - start, "decode / cores": seconds["decode"] / cores}
            now["write"] = now["task"] - now["wait for embed"]
            since, told = {stage: value - told.get(stage, 0.0) for stage, value in now.items()}, now
            yield PartResult(
                path=part_uri(job.output, "embeddings", unit.part),
                counts=dict(counts),
                seconds=since,
                obtained=f"{embedder.model.precision} on {embedder.model.device.type}",
                process=f"{os.uname().nodename}-{os.getpid()}",
                ceiling=embedder.ceiling.rate,
            )


def _facts(unit: Unit) -> Footer:
    return {"shard": unit.shard, "stamp": unit.stamp}


def _write_unit(items: Iterable[Any], unit: Unit, writer: UnitWriter, finish: Callable, label: Callable) -> Counter:
    """Write the batches of one unit until its end mark, and commit its part; the part's counts."""
    from clip_transforms.engine.rows import shard_reject

    notes: Counter = Counter()
    for item in items:
        if isinstance(item, _UnitEnd):
            if item.error:
                writer.reject(shard_reject(unit.shard, item.error.reason, str(item.error)))
            return writer.commit(item.samples, item.notes + notes, item.captions)
        batch = finish(item)
        notes.update(batch.notes)
        writer.write(batch.rows, label(batch.rows), batch.rejects, batch.absent)
        if batch.captions is not None:
            writer.write_captions(batch.captions.rows, batch.captions.rejected)
    raise AssertionError(f"the stream of {unit.shard} has no end mark")


def _label(rows: pa.RecordBatch, classifiers: Mapping[str, Classifier], top_labels: int) -> dict[str, pa.RecordBatch]:
    return {name: label_batch(rows, classifier, top_labels) for name, classifier in classifiers.items()}


def _watched(decoded: Iterable[Any]) -> Iterator[Any]:
    """Count embedded samples for the progress bar, and give free memory back now and then.

    This is the last place that sees one batch at a time: captions are embedded many batches at a time.
    """
    trimmed = time.perf_counter()
    for item in decoded:
        yield item
        if not isinstance(item, _UnitEnd):
            PROGRESS["samples"] += item.samples.num_rows
            PROGRESS["bytes"] += item.samples.nbytes
        if time.perf_counter() - trimmed >= _TRIM_SECONDS:
            give_back_memory()
            trimmed = time.perf_counter()


def _read(units: Iterable[Unit], begun: collections.deque[Unit], job: Job, batch_size: int) -> Iterator[Any]:
    """Read the units one after the other: (place of the unit, batch) for each batch, and a mark after each unit.

    Each unit is added to `begun` before its first batch.
    """
    for place, unit in enumerate(units):
        begun.append(unit)
        samples, error = 0, None
        captions = 0 if job.settings.reader.captions == "all" else None
        notes: Counter = Counter()
        try:
            for batch in read_unit(unit, job.settings.reader, batch_size, notes, job.folder):
                samples += batch.num_rows
                if captions is not None:
                    captions += pc.sum(batch.column(NUM_CAPTIONS)).as_py() or 0
                yield place, batch
        except ShardError as damage:
            error = damage
        yield _UnitEnd(place, samples, captions, notes, error)


def _part_settings(job: Job, embedder: Any) -> PartSettings:
    """Collect what every part says of itself. It holds no time, host, path, thread or run id."""
    architecture = dataclasses.asdict(embedder.model.architecture)
    provenance = {
        "model_sha256": job.checkpoint.sha256,
        **({"checkpoint_key": job.checkpoint.key} if job.checkpoint.key else {}),
        "architecture": {**architecture, "vision_layers": str(architecture["vision_layers"])},
        "embed_dim": embedder.model.embed_dim,
        "activation": job.checkpoint.activation,
        "preprocessing": job.fields["preprocessing"],
        "tokenizer": job.fields["tokenizer"],
        "precision": embedder.model.precision,
        "device": embedder.model.device.type,
        "batch_size": embedder.batch_size,
        "versions": versions(),
    }
    footer: Footer = {"fingerprint": job.fingerprint, "provenance": provenance}
    schema = embeddings_schema(job.settings.embedding_dtype, job.settings.reader.columns)
    captions = captions_schema(job.settings.embedding_dtype) if job.settings.reader.captions == "all" else None
    return PartSettings(job.output, job.folder, schema, footer, label_footers(job), captions, job.other_kinds)
