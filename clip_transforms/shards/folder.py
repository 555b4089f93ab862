"""Read folders of pictures. Captions and metadata lie in files of the same stem."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.batches import (
    MAX_METADATA_BYTES,
    batch_samples,
    caption_fields,
    caption_file_too_large,
    decode_caption,
    decode_metadata,
    note_lines,
    read_reject,
    read_up_to,
    too_large,
)
from clip_transforms.shards.hive import fill_in, folder_values
from clip_transforms.shards.json_fields import SeenFields, field_names, json_field
from clip_transforms.shards.unit import ReaderOptions, Unit

# The side file of a folder has one row per image; caption and metadata are null where there is no such file.
# Paths are bytes, since the name of a file need not be UTF-8.
FILES = pa.schema(
    [
        *(("key", pa.string()), ("image", pa.binary()), ("caption", pa.binary()), ("metadata", pa.binary())),
        ("others", pa.list_(pa.string())),  # extensions of other files of the same stem, if it has no caption
    ]
)


def read_folder(
    unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter, plan_folder: str
) -> Iterator[pa.RecordBatch]:
    """Read the images of one unit.

    Args:
        unit: its `uri` names a side file in `plan_folder`; `start` and `stop` are rows of that file.
        options: limits, and the user's columns, which come from the JSON file beside an image.
        batch_size: maximum number of rows in a batch.
        notes: counter for oddities that the user should know of.
        plan_folder: URI of the folder that holds the plan and its side files.
    """
    with storage.open_input(storage.join(plan_folder, unit.uri)) as file:
        table = pq.ParquetFile(file).read(use_threads=False)
    files = table.slice(unit.start, unit.stop - unit.start).to_pylist()
    seen = SeenFields()
    samples = (_sample(row, paths, options, notes, seen) for row, paths in enumerate(files))
    try:
        yield from batch_samples(samples, options, batch_size, notes)
    finally:  # also where the limit ends the unit early
        seen.note(notes)


def _sample(
    row: int, files: dict[str, Any], options: ReaderOptions, notes: Counter, seen: SeenFields
) -> dict[str, Any]:
    sample: dict[str, Any] = {"key": files["key"], "row": row}
    paths = {name: files[name] and os.fsdecode(files[name]) for name in ("image", "caption", "metadata")}
    try:
        data = _read(paths["image"], options.max_image_bytes)
        sample |= too_large("image", None, options.max_image_bytes) if data is None else {"image": data}
    except OSError as error:
        sample["image_reject"] = _reject(error)
    if paths["caption"]:
        try:
            data = _read(paths["caption"], options.max_caption_file_bytes)
            sample |= caption_file_too_large(None, options) if data is None else decode_caption(data, options)
            note_lines(sample.get("caption"), options, notes)
        except OSError as error:
            sample["caption_reject"] = _reject(error)
    fields: dict[str, Any] = {}
    if paths["metadata"]:
        try:
            sample["metadata"], fields = decode_metadata(_read(paths["metadata"], MAX_METADATA_BYTES), notes)
            sample |= {column.name: json_field(fields, column.field) for column in options.columns}
            if options.caption_column and not paths["caption"]:
                sample |= caption_fields(json_field(fields, options.caption_column), options)
        except OSError as error:
            if storage.is_of_the_machine(error):
                raise
            notes["JSON files that could not be read"] += 1
    seen.add(sample, (*(files["others"] or ()), *field_names(fields)))
    return fill_in(sample, folder_values(paths["image"]), options) if options.columns else sample


def _read(uri: str, limit: int) -> bytes | None:
    """Read a whole file; return None if it has more than `limit` bytes."""
    with storage.open_input(uri) as file:
        data = read_up_to(file, limit + 1)
    return data if len(data) <= limit else None


def _reject(error: OSError) -> dict[str, Any]:
    if storage.is_of_the_machine(error):
        raise error
    reason = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
    return read_reject(reason, f"{type(error).__name__}: {error.strerror or error}", None)
