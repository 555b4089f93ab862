"""Read listings: CSV, TSV, JSON or Parquet with a URI, a caption or both in each row. A side file holds their rows."""

from __future__ import annotations

import contextlib
import itertools
import json
import posixpath
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import (
    batch_samples,
    caption_fields,
    dumps,
    key_text,
    read_reject,
    writable,
)
from clip_transforms.shards.cut_listing import OFFERS
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.fetch import shown
from clip_transforms.shards.fetch_ahead import fetch_in_order
from clip_transforms.shards.hive import fill_in_all
from clip_transforms.shards.inline import is_inline, without_pictures
from clip_transforms.shards.json_fields import SeenFields, field_names, json_field, outer_field
from clip_transforms.shards.parquet_columns import listing_columns
from clip_transforms.shards.records import Record
from clip_transforms.shards.row_groups import open_parquet
from clip_transforms.shards.unit import ReaderOptions, ShardError, Unit
from schemas.samples import IMAGE_URI


def read_listing(
    unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter, plan_folder: str
) -> Iterator[pa.RecordBatch]:
    """Read the rows of one unit. Several images are fetched ahead at a time; rows keep their order.

    Args:
        unit: its `uri` names a side file in `plan_folder`; `start` and `stop` are row groups of that file.
        options: names the columns, the limits and the allowed URIs.
        batch_size: maximum number of rows in a batch.
        notes: counter for oddities that the user should know of.
        plan_folder: URI of the folder that holds the plan and its side files.
    Raises:
        ShardError: after the rows, if the listing could not be read to its end.
    """
    with contextlib.closing(_samples(unit, options, notes, plan_folder)) as samples:
        yield from batch_samples(fill_in_all(samples, unit.shard, options), options, batch_size, notes)


def _samples(
    unit: Unit, options: ReaderOptions, notes: Counter, plan_folder: str
) -> Generator[dict[str, Any], None, None]:
    fence = Fence(posixpath.dirname(unit.shard), options.allow_uri)
    found = itertools.islice(_samples_of(unit, options, notes, plan_folder), options.limit or None)
    with contextlib.closing(fetch_in_order(found, fence, options)) as rows:
        for sample, fetched in rows:
            yield sample | fetched


def _samples_of(
    unit: Unit, options: ReaderOptions, notes: Counter, plan_folder: str
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the samples of a unit without their images, each with the URI of its image, if it has one.

    Raises:
        ShardError: after the last row, if the listing is damaged there.
    """
    with storage.open_input(storage.join(plan_folder, unit.uri)) as file:
        parquet = open_parquet(file)
        offers = parquet.schema_arrow.metadata[OFFERS].decode().split()
        seen = SeenFields()
        try:
            for batch in parquet.iter_batches(256, list(range(unit.start, unit.stop)), use_threads=False):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    record = Record(*values)
                    if record.text is None:
                        raise ShardError("unreadable", record.problem or "")
                    sample, uri = _sample(record, options, offers, notes)
                    seen.add({**sample, "image": uri}, _fields_left(sample, options))
                    yield sample, uri
        finally:
            if offers == ["image"]:  # a listing of captions alone is nothing unusual
                seen.note(notes)


def _fields_left(sample: dict[str, Any], options: ReaderOptions) -> Iterator[str]:
    """Yield the fields of a row that are neither image nor caption."""
    fields = json.loads(sample.get("metadata") or "{}")
    uri = listing_columns(tuple(fields), options).uri
    yield from (name for name in field_names(fields) if name != uri)


def _sample(
    record: Record, options: ReaderOptions, offers: Sequence[str], notes: Counter
) -> tuple[dict[str, Any], str | None]:
    sample: dict[str, Any] = {"key": str(record.row), "row": record.row}
    problem = record.problem
    if problem is None:
        try:
            fields = record.fields()
        except (ValueError, RecursionError) as error:
            problem = f"no JSON object: {error}"
    if problem is None:
        if record.short:
            notes["rows of listings that have fewer fields than the header"] += 1
        if record.merged:
            notes["rows of listings whose quotes join lines that look like rows themselves"] += 1
        try:
            found, uri = _of_fields(fields, options)
            return sample | found, uri
        except RecursionError as error:  # JSON this deep can be read but not written
            problem = str(error)
    text = record.text or b""
    reject = read_reject("malformed row", f"{problem}: {without_pictures(text)[:80]!r}", len(text))
    return sample | {f"{modality}_reject": reject for modality in offers}, None


def _of_fields(fields: dict[str, Any], options: ReaderOptions) -> tuple[dict[str, Any], str | None]:
    columns = listing_columns(tuple(fields), options)
    key, uri, caption = (json_field(fields, name) if name else None for name in columns[:3])
    index = columns.caption_index
    if index is not None:
        caption = caption[index] if isinstance(caption, list) and index < len(caption) else None
    used = {columns.key, columns.caption, *(column.field for column in options.columns)}
    if columns.uri and isinstance(uri, str) and is_inline(uri.strip()):
        used.add(outer_field(fields, columns.uri))
    others = {name: value for name, value in fields.items() if name not in used}
    sample: dict[str, Any] = {"key": key_text(key)} if key_text(key) else {}
    sample |= caption_fields(caption, options)
    sample |= {column.name: json_field(fields, column.field) for column in options.columns}
    sample["metadata"] = writable(dumps(others)) if others else None
    if uri is not None and not isinstance(uri, str):
        found = without_pictures(json.dumps(uri, default=str).encode()).decode()
        inner = next(field_names({str(columns.uri): uri}), None) if isinstance(uri, (list, dict)) else None
        cure = f"; --image_column '{inner}' takes a text inside it" if inner else ""
        message = f"the URI is {found[:80]}, but it must be a text{cure}"
        return sample | {"image_reject": read_reject("not text", message, None)}, None
    uri = (uri or "").strip() or None
    sample[IMAGE_URI] = uri and writable(shown(uri))
    return sample, uri
