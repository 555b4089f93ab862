"""Say what a file or folder is that `embed` reads: shards, listings, pictures, classes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator

from clip_transforms import storage
from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.clip.preprocess import Preprocessing, decode
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.counts import counted
from clip_transforms.run.inspected import Inspected, InspectError, command, facts_of, size_of, some
from clip_transforms.run.settings import Settings
from clip_transforms.run.turned import turned
from clip_transforms.shards.inventory import Inventory, take_inventory
from clip_transforms.shards.listing_plan import plan_listing
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.records import read_records
from clip_transforms.shards.row_groups import open_parquet
from clip_transforms.shards.tar import members_from, read_members
from clip_transforms.shards.tar_bytes import is_compressed
from clip_transforms.shards.tar_samples import keyed_members
from clip_transforms.shards.unit import ReaderOptions, ShardError

_SECONDS = 5.0  # for counting; then there are at least as many as were counted
_OPTIONS = ReaderOptions()
_NAMES = {"webdataset": "a webdataset tar", "tfrecord": "a TFRecord", "parquet": "a Parquet file with pictures"}


def inspect_picture(uri: str, start: bytes) -> Inspected:
    """Describe a picture whose first bytes are given.

    Raises:
        InspectError: if it cannot be decoded under the limits of a run.
    """
    data = storage.read_bytes(uri)
    try:
        found = decode(data, Preprocessing(1), Settings.max_image_pixels)
    except ImageError as error:
        raise InspectError(f"{uri} begins as a picture and cannot be decoded: {error.reason} ({error})") from error
    facts = facts_of(
        format=picture_format(start), pixels=f"{found.width:,} × {found.height:,}", size=size_of(len(data))
    )
    return Inspected("a picture", facts, (command("search", "--input", "DATASET", "--image", uri),))


def inspect_shard(uri: str, format_: str) -> Inspected:
    """Describe a tar or a TFRecord.

    Raises:
        InspectError: if it is damaged.
    """
    inventory = take_inventory([uri], ReaderOptions(input_format=format_))
    rows = ""
    try:
        if format_ == "webdataset":
            number, is_all = _count(row for row, *_ in _keyed(uri))
            rows = f"{counted(number, 'sample')}" if is_all else f"at least {counted(number, 'sample')}"
        first = _first_sample(inventory)
    except ShardError as error:
        raise InspectError(
            f"{uri} is {_NAMES[format_]}, and damaged: {' '.join(str(error).split())}; embed takes what is before that"
        ) from error
    facts = facts_of(rows=rows, first=first, size=size_of(sum(unit.num_bytes for unit in inventory.units)))
    return Inspected(_NAMES[format_], facts, (_embed(uri),))


def _keyed(uri: str) -> Iterator[tuple[int, str]]:
    """Yield (row, key) of the members of a tar, reading as little as possible."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(storage.open_input(uri))
        if storage.is_local(uri) and not is_compressed(file):
            members = members_from(file)
        else:
            members = stack.enter_context(contextlib.closing(read_members(uri)))
        for row, key, *_ in keyed_members(members, Counter()):
            yield row, key


def _count(rows: Iterator[int]) -> tuple[int, bool]:
    """Return how many rows there are, and whether these are all: counting ends after some seconds."""
    end, last = time.monotonic() + _SECONDS, -1
    for last in rows:
        if time.monotonic() > end:
            return last + 1, False
    return last + 1, True


def _first_sample(inventory: Inventory) -> str:
    """Describe the first sample of the first unit of an inventory without side files."""
    for batch in read_unit(inventory.units[0], ReaderOptions(limit=1), 1, Counter(), ""):
        (sample,) = batch.to_pylist()
        caption = sample["caption"]
        image = sample["image"]
        kind = picture_format(image) if image else None
        parts = [f"a {kind or 'picture'} of {size_of(len(image))}" if image else "no picture"]
        parts += [repr(caption[:80]) if caption else "no caption"]
        return f"{sample['key'][:80]}: {', '.join(parts)}"
    return ""


def inspect_parquet(uri: str) -> Inspected:
    """Describe a Parquet file that this program did not write.

    Raises:
        PlanError: in one sentence, if embed would not read it.
    """
    with storage.open_input(uri) as file:
        metadata = open_parquet(file).metadata
    inventory = take_inventory([uri], _OPTIONS)
    if broken := next(iter(inventory.broken.values()), None):
        raise InspectError(str(broken))
    listing = inventory.formats == {"listing"}
    facts = facts_of(
        rows=f"{metadata.num_rows:,} in {counted(metadata.num_row_groups, 'row group')}",
        columns=some(metadata.schema.to_arrow_schema().names),
        first="" if listing else _first_sample(inventory),
        size=size_of(sum(info.size for info in storage.infos_of([uri]))),
    )
    return Inspected("a listing, as Parquet" if listing else _NAMES["parquet"], facts, (_embed(uri),))


def inspect_listing(uri: str) -> Inspected:
    """Describe a CSV, TSV or JSON file.

    Raises:
        PlanError: in one sentence, if embed would not read it.
    """
    planned = plan_listing(uri, None, _OPTIONS)
    records = read_records(uri, planned.form)
    first = next(records, None)
    if first is None:
        raise InspectError(f"{uri} is a listing without rows")
    number, is_all = _count(record.row for record in itertools.chain([first], records) if record.text is not None)
    try:
        columns = some(first.fields())
    except (ValueError, RecursionError):
        columns = ""
    facts = facts_of(
        rows=f"{'' if is_all else 'at least '}{number:,}",
        columns=columns,
        offers=" and ".join(f"{name}s" for name in planned.offers),
        size=size_of(sum(info.size for info in storage.infos_of([uri]))),
        note=some(line.partition(": ")[2] for line in planned.hints),
    )
    return Inspected("a listing", facts, (_embed(uri),))


def inspect_folder(uri: str) -> Inspected:
    """Describe a folder of shards or pictures.

    Raises:
        PlanError: in one sentence, if embed would not read it.
    """
    inventory = take_inventory([uri], _OPTIONS)
    first, *notes = [*inventory.detection, *turned(inventory.side_files)]
    found = first.removeprefix(f"{uri}: ")
    facts = facts_of(
        units=f"{len(inventory.units):,}, each to become a part",
        size=size_of(sum(unit.num_bytes for unit in inventory.units)),
        note=some((line.removeprefix("note: ") for line in notes), 3),
    )
    return Inspected(found if found.startswith("a folder") else f"a folder of {found}", facts, (_embed(uri),))


def inspect_classes(uri: str) -> Inspected:
    """Describe a file or folder of classes.

    Raises:
        TaxonomyError: in one sentence, if it is none.
    """
    taxonomy = Taxonomy.load(uri)
    facts = facts_of(
        classes=f"{len(taxonomy.classes):,}: {some(taxonomy.class_names)}", templates=some(taxonomy.templates, 2)
    )
    return Inspected("a list of classes", facts, (command("label", "--input", "DATASET", "--taxonomy", uri),))


def _embed(uri: str) -> str:
    return command("embed", "--input", uri, "--output", "out", "--model", "ViT-B/32")
