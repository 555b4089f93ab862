"""Read Parquet files that hold image bytes."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms import storage
from clip_transforms.parts.counts import SEEN
from clip_transforms.shards.all_captions import split_by_captions, with_list
from clip_transforms.shards.batches import (
    caption_fields,
    dumps,
    key_text,
    lost_values,
)
from clip_transforms.shards.column_types import holds_bytes
from clip_transforms.shards.hive import folder_values
from clip_transforms.shards.parquet_columns import (
    ColumnError,
    caption_column,
    check_columns,
    image_column,
    key_column,
    places_of_texts,
)
from clip_transforms.shards.parquet_images import ImageColumn, Images
from clip_transforms.shards.parquet_values import cast_column, python_values
from clip_transforms.shards.places import column_of, type_at, values_at
from clip_transforms.shards.row_groups import DAMAGE, open_parquet, read_row_groups, rows_that_fit
from clip_transforms.shards.unit import ReaderOptions, ShardError, Unit, shard_error
from schemas.samples import ALL_CAPTIONS, IMAGE_URI, NUM_CAPTIONS, samples_schema

# img2dataset keeps rows that it could not download, with null bytes; such a row offers nothing.
_FAILED = ("failed_to_download", "failed_to_resize")
_MAX_SEEN = 20  # names of columns that a unit without captions notes


def read_parquet(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Read the row groups of one unit; memory holds pages, not row groups.

    Raises:
        ShardError: after all readable rows, if some cannot be read or the columns cannot be used.
    """
    if unit.image_column:  # planning found it by its bytes
        options = dataclasses.replace(options, image_column=unit.image_column)
    try:
        with storage.open_input(unit.uri) as file:
            parquet = open_parquet(file)
            schema = parquet.schema_arrow
            check_columns(schema, options)
            image = image_column(schema, options)
            if image is None or unit.stop > parquet.num_row_groups:
                raise ShardError("unreadable", "it has no column of image bytes, or fewer rows than planned")
            if caption_column(schema, options) is None:
                notes.update(f"{SEEN}{place}" for place in _other_fields(schema, image, options)[:_MAX_SEEN])
            groups = range(unit.start, unit.stop)
            folders = folder_values(unit.shard)
            column = ImageColumn(image, unit.base or posixpath.dirname(unit.shard), options)
            rows = min(batch_size, rows_that_fit(parquet.metadata, groups))
            for row, batch in read_row_groups(parquet, groups, unit.first_row, rows):
                for start, stop in _pieces(batch, options):
                    piece = batch.slice(start, stop - start)
                    for first, end, images in column.pieces(piece):
                        place = row + start + first
                        yield _to_samples(piece.slice(first, end - first), place, images, folders, options, notes)
    except (*DAMAGE, ColumnError) as error:
        raise shard_error(unit.uri, error) from error


def _other_fields(schema: pa.Schema, image: str, options: ReaderOptions) -> list[str]:
    """Return the places of texts that are neither the image nor the key nor a column of the user's own."""
    used = {
        image,
        f"{image}[0]",
        f"{image}.path",
        key_column(schema, options),
        *(column.field for column in options.columns),
    }
    return [place for place in places_of_texts(schema) if place not in used]


def _pieces(batch: pa.RecordBatch, options: ReaderOptions) -> Iterator[tuple[int, int]]:
    """Cut a batch into ranges of rows that do not hold too many captions."""
    column = caption_column(batch.schema, options)
    if options.captions == "first" or column is None or not pa.types.is_nested(type_at(batch.schema, column[0])):
        return iter([(0, batch.num_rows)])
    counts = pc.fill_null(pc.list_value_length(values_at(batch, column[0])), 0)
    return split_by_captions(counts.to_pylist())


def _to_samples(
    batch: pa.RecordBatch,
    first_row: int,
    images: Images,
    folders: Mapping[str, str | None],
    options: ReaderOptions,
    notes: Counter,
) -> pa.RecordBatch:
    schema = batch.schema
    image_name, key_name = image_column(schema, options), key_column(schema, options)
    caption_name = caption_column(schema, options)
    rows = pa.array(range(first_row, first_row + batch.num_rows), pa.int64())
    keys = rows.cast(pa.string())
    if key_name:
        found = (key_text(value) for value in python_values(values_at(batch, key_name), Counter()))
        keys = pa.array([key or str(row) for key, row in zip(found, rows.to_pylist(), strict=True)])
    offered = _offered(batch, images)
    captions = _captions(batch, caption_name, offered, options)
    used = {
        image_name and column_of(schema, image_name),
        key_name,
        caption_name and caption_name[0],
        *(column.field for column in options.columns),
    }
    values: dict[str, Any] = {
        "key": keys,
        "row": rows,
        "image": images.data,
        "image_reject": images.rejects,
        "metadata": _metadata(batch, used, notes),
        IMAGE_URI: images.uris,
    }
    for column in options.columns:
        if type_at(schema, column.field) is not None:
            found = values_at(batch, column.field)
        else:
            found = pa.array([folders.get(column.field)] * batch.num_rows)
        with lost_values(column, notes) as lost:
            values[column.name] = cast_column(found, column.arrow_type, lost)
    target = samples_schema(options.columns, options.captions)
    for name in ("caption", "caption_reject", ALL_CAPTIONS, NUM_CAPTIONS):
        if name in target.names:
            values[name] = pa.array([fields.get(name) for fields in captions], target.field(name).type)
    return pa.RecordBatch.from_arrays([values[name] for name in target.names], schema=target)


def _offered(batch: pa.RecordBatch, images: Images) -> list[bool]:
    """Return for each row whether it offers anything; rows that img2dataset failed to download do not."""
    if "status" not in batch.schema.names:
        return [True] * batch.num_rows
    statuses = python_values(
        batch.column(batch.schema.names.index("status")), Counter()
    )  # the column may be the user's own, so oddities in it are not counted
    return [
        not (status in _FAILED and not valid)
        for status, valid in zip(statuses, images.offered.to_pylist(), strict=True)
    ]


def _captions(
    batch: pa.RecordBatch, column: tuple[str, int | None] | None, offered: list[bool], options: ReaderOptions
) -> list[Mapping[str, Any]]:
    """Return for each row its caption or captions, or their rejects; nothing where they are absent."""
    if column is None:
        return [{}] * batch.num_rows
    name, index = column
    found: list[Mapping[str, Any]] = []
    for scalar, offers in zip(values_at(batch, name), offered, strict=True):
        value = _text_of(scalar, index) if offers else None
        fields = caption_fields(value, options)
        found.append(with_list(fields) if options.captions == "all" else fields)
    return found


def _text_of(scalar: pa.Scalar, index: int | None) -> Any:
    """Return a text, or one or all of a list; of a text that is not UTF-8, which Arrow does not check, its bytes."""
    if not isinstance(scalar, pa.ListScalar):
        return _text_or_bytes(scalar)
    entries = scalar.values if scalar.is_valid else ()
    if index is None:
        return [_text_or_bytes(entry) for entry in entries]
    return _text_or_bytes(entries[index]) if index < len(entries) else None


def _text_or_bytes(scalar: pa.Scalar) -> str | bytes | None:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _metadata(batch: pa.RecordBatch, used: set[str | None], notes: Counter) -> pa.Array:
    names = [f.name for f in batch.schema if f.name not in used and not holds_bytes(f.type)]
    if not names:
        return pa.nulls(batch.num_rows, pa.string())
    columns = [python_values(batch.column(name), notes) for name in names]
    return pa.array([dumps(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)], pa.string())
