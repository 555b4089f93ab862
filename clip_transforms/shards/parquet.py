"""Parquet files with image bytes in them."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.batches import caption_fields, cast, dumps, read_reject, too_large
from clip_transforms.shards.unit import IMAGE_EXTENSIONS, ReaderOptions, ShardError, Unit
from schemas.samples import READ_REJECT, samples_schema

IMAGE_COLUMNS = ("image", "image_bytes", "bytes", *IMAGE_EXTENSIONS)
CAPTION_COLUMNS = ("caption", "text", "txt")
KEY_COLUMNS = ("key", "uid", "__key__")
# img2dataset keeps the rows that it could not download, with null bytes: nothing was offered there.
_FAILED = ("failed_to_download", "failed_to_resize")
_INDEXED = re.compile(r"(.+)\[(\d+)\]")


class ColumnError(ValueError):
    """A column that was asked for and cannot serve, in one sentence."""


def image_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """The column that holds image bytes: a binary one, or a struct with binary `bytes`; None if there is none.

    Raises:
        ColumnError: if `--image_column` names another thing.
    """
    if options.image_column:
        if options.image_column not in schema.names:
            raise _missing("image_column", options.image_column, schema)
        if not _holds_bytes(schema.field(options.image_column).type):
            raise ColumnError(
                f"--image_column {options.image_column} is {schema.field(options.image_column).type}, but it must be "
                "binary or a struct with binary bytes"
            )
        return options.image_column
    names = {name.lower(): name for name in reversed(schema.names)}
    candidates = (names[name] for name in IMAGE_COLUMNS if name in names)
    return next((name for name in candidates if _holds_bytes(schema.field(name).type)), None)


def caption_column(schema: pa.Schema, options: ReaderOptions) -> tuple[str, int | None] | None:
    """The column of captions, and the place in it where it lists several; None if there is none.

    Raises:
        ColumnError: if `--caption_column` names another thing, or the column lists several and no place is given.
    """
    asked, index = options.caption_column, None
    if asked and asked not in schema.names and (match := _INDEXED.fullmatch(asked)):
        asked, index = match[1], int(match[2])
    if asked and asked not in schema.names:
        raise _missing("caption_column", asked, schema)
    # What is only called like a caption, and is a number or a struct, is passed over; what was asked for must serve.
    names = (
        [asked] if asked else [n for n in CAPTION_COLUMNS if n in schema.names and not _is_other(schema.field(n).type)]
    )
    if not names:
        return None
    name, type_ = names[0], schema.field(names[0]).type
    listed = _is_list(type_)
    if listed and index is None:
        raise ColumnError(f"the column {name} lists several captions a row; choose one: --caption_column '{name}[0]'")
    if not listed and index is not None:
        raise ColumnError(
            f"--caption_column {options.caption_column}: {name} is {type_}, no list; leave [{index}] away"
        )
    text = type_.value_type if listed or pa.types.is_dictionary(type_) else type_
    if not (_is_text(text) or pa.types.is_null(text)):
        raise ColumnError(f"the caption column {name} is {type_}, but it must be text; choose with --caption_column")
    return name, index


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_other(type_: pa.DataType) -> bool:
    """Neither text nor a list nor nothing at all."""
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    return not (_is_text(plain) or _is_list(plain) or pa.types.is_null(plain))


def key_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """The column of keys; None if the row is the key.

    Raises:
        ColumnError: if `--key_column` names a column that is not there.
    """
    if options.key_column and options.key_column not in schema.names:
        raise _missing("key_column", options.key_column, schema)
    if options.key_column and pa.types.is_nested(schema.field(options.key_column).type):
        type_ = schema.field(options.key_column).type
        raise ColumnError(f"--key_column {options.key_column} is {type_}, but it must be text, bytes or a number")
    usual = (n for n in KEY_COLUMNS if n in schema.names and not pa.types.is_nested(schema.field(n).type))
    return options.key_column or next(usual, None)


def check_columns(schema: pa.Schema, options: ReaderOptions) -> None:
    """Refuse what `read_parquet` could not serve.

    Raises:
        ColumnError: naming the column.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ColumnError(f"the Parquet file has two columns called {twice[0]}; write it again with one of each name")
    caption_column(schema, options)
    key_column(schema, options)
    for column in options.columns:
        if column.field not in schema.names:
            raise _missing("columns", column.field, schema)


def _missing(flag: str, name: str, schema: pa.Schema) -> ColumnError:
    return ColumnError(f"--{flag} {name} is no column of the Parquet file; it has {', '.join(schema.names)}")


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return place >= 0 and _holds_bytes(type_.field(place).type)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def _has_bytes(type_: pa.DataType) -> bool:
    """Whether there are bytes anywhere in it."""
    if _holds_bytes(type_) or pa.types.is_fixed_size_binary(type_):
        return True
    return pa.types.is_nested(type_) and any(_has_bytes(type_.field(i).type) for i in range(type_.num_fields))


def read_parquet(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Read the row groups of one unit; memory holds pages, not row groups.

    Raises:
        ShardError: after the rows before the damage, if the file cannot be read.
    """
    row = unit.first_row
    try:
        with storage.open_input(unit.uri) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            groups = list(range(unit.start, unit.stop))
            for batch in parquet.iter_batches(batch_size, row_groups=groups, use_threads=False):
                yield _to_samples(batch, row, options, notes)
                row += batch.num_rows
    except FileNotFoundError as error:
        raise ShardError("vanished", f"{unit.uri} is gone since the run was planned") from error
    except (pa.ArrowException, OSError) as error:
        raise ShardError("unreadable", f"after row {row:,}: {type(error).__name__}: {error}") from error


def _to_samples(batch: pa.RecordBatch, first_row: int, options: ReaderOptions, notes: Counter) -> pa.RecordBatch:
    schema = batch.schema
    image_name, caption_name, key_name = (f(schema, options) for f in (image_column, caption_column, key_column))
    image = _image_bytes(batch.column(image_name))
    rows = pa.array(range(first_row, first_row + batch.num_rows), pa.int64())
    keys = rows.cast(pa.string())
    if key_name:
        found = (_key_text(value) for value in values_of(batch.column(key_name), Counter()))
        keys = pa.array([key or str(row) for key, row in zip(found, rows.to_pylist(), strict=True)])
    offered = _offered(batch, image)
    image, image_rejects = _within_limit(image, options)
    captions, caption_rejects = _captions(batch, caption_name, offered, options)
    used = {image_name, key_name, caption_name and caption_name[0], *(column.field for column in options.columns)}
    values: dict[str, Any] = {
        "key": keys,
        "row": rows,
        "image": image,
        "caption": captions,
        "image_reject": image_rejects,
        "caption_reject": caption_rejects,
        "metadata": _metadata(batch, used, notes),
    }
    for column in options.columns:
        values[column.name] = _cast(batch.column(column.field), column.arrow_type, notes)
    target = samples_schema(options.columns)
    return pa.RecordBatch.from_arrays([values[name] for name in target.names], schema=target)


def _image_bytes(array: pa.Array) -> pa.Array:
    if pa.types.is_struct(array.type):
        # .field() ignores the struct's own nulls; flatten() respects them.
        array = array.flatten()[array.type.get_field_index("bytes")]
    return array.cast(pa.binary())


def _within_limit(image: pa.Array, options: ReaderOptions) -> tuple[pa.Array, pa.Array]:
    """Images without those of too many bytes, and what is rejected of them."""
    sizes, limit = pc.binary_length(image), options.max_image_bytes
    within = pc.less_equal(sizes, limit)
    if pc.all(within).as_py() is not False:  # null where there is no image
        return image, pa.nulls(len(image), READ_REJECT)
    rejects = [
        too_large("image", size, limit)["image_reject"] if size is not None and size > limit else None
        for size in sizes.to_pylist()
    ]
    return pc.if_else(within, image, None), pa.array(rejects, READ_REJECT)


def _offered(batch: pa.RecordBatch, image: pa.Array) -> list[bool]:
    """Whether a row offers anything: img2dataset's failed rows do not."""
    if "status" not in batch.schema.names:
        return [True] * batch.num_rows
    statuses = batch.column(batch.schema.names.index("status")).to_pylist()
    return [
        not (status in _FAILED and not valid)
        for status, valid in zip(statuses, image.is_valid().to_pylist(), strict=True)
    ]


def _key_text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _captions(
    batch: pa.RecordBatch, column: tuple[str, int | None] | None, offered: list[bool], options: ReaderOptions
) -> tuple[pa.Array, pa.Array]:
    """Captions, null where absent, and what is rejected of them."""
    if column is None:
        return pa.nulls(batch.num_rows, pa.string()), pa.nulls(batch.num_rows, READ_REJECT)
    name, index = column
    fields = []
    for scalar, offers in zip(batch.column(name), offered, strict=True):
        try:
            value = scalar.as_py() if offers else None
        except UnicodeDecodeError as error:  # Arrow does not look at what it reads
            message = f"not UTF-8 at byte {error.start}: {error.object[error.start : error.start + 8]!r}"
            fields.append({"caption_reject": read_reject("not UTF-8", message, len(error.object))})
            continue
        if index is not None:
            value = value[index] if value is not None and len(value) > index else None
        fields.append(caption_fields(value, options))
    captions = pa.array([field.get("caption") for field in fields], pa.string())
    return captions, pa.array([field.get("caption_reject") for field in fields], READ_REJECT)


def _metadata(batch: pa.RecordBatch, used: set[str | None], notes: Counter) -> pa.Array:
    names = [f.name for f in batch.schema if f.name not in used and not _has_bytes(f.type)]
    if not names:
        return pa.nulls(batch.num_rows, pa.string())
    columns = [values_of(batch.column(name), notes) for name in names]
    return pa.array([dumps(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)], pa.string())


def values_of(array: pa.Array, notes: Counter) -> list[Any]:
    """Python values of a column; those that Python cannot hold, or that are no UTF-8, are None and counted."""
    if pa.types.is_temporal(array.type):
        with contextlib.suppress(pa.ArrowException):  # Arrow's own text: Python knows no year beyond 9999
            array = array.cast(pa.string())
    try:
        return array.to_pylist()
    except (UnicodeDecodeError, OverflowError, ValueError, KeyError, pa.ArrowException):
        return [_value_of(scalar, notes) for scalar in array]


def _value_of(scalar: pa.Scalar, notes: Counter) -> Any:
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, OverflowError, ValueError, KeyError, pa.ArrowException):
        notes["values that could not be cast"] += 1
        return None


def _cast(array: pa.Array, type_: pa.DataType, notes: Counter) -> pa.Array:
    try:
        found = array.cast(type_)
        found.validate(full=True)  # a text that is no UTF-8 would be written through
        return found
    except (pa.ArrowException, UnicodeDecodeError):
        return cast(values_of(array, notes), type_, notes)
