"""Read Parquet files that hold image bytes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.all_captions import split_by_captions, with_list
from clip_transforms.shards.batches import (
    MAX_BATCH_BYTES,
    caption_fields,
    cast,
    dumps,
    key_text,
    lost_values,
    too_large,
)
from clip_transforms.shards.parquet_columns import (
    ColumnError,
    caption_column,
    check_columns,
    has_bytes,
    image_column,
    key_column,
)
from clip_transforms.shards.unit import ReaderOptions, ShardError, Unit, shard_error
from schemas.samples import ALL_CAPTIONS, IMAGE_URI, NUM_CAPTIONS, READ_REJECT, samples_schema

# Errors that damaged bytes cause; UnicodeDecodeError comes from names of columns.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
# Errors of `as_py` for a value that Python cannot hold or decode.
_NO_PYTHON_VALUE = (ValueError, OverflowError, KeyError, pa.ArrowException)
# img2dataset keeps rows that it could not download, with null bytes; such a row offers nothing.
_FAILED = ("failed_to_download", "failed_to_resize")
_NAMED = 5  # number of damaged places that a reject names


def read_parquet(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Read the row groups of one unit; memory holds pages, not row groups.

    Raises:
        ShardError: after all readable rows, if some cannot be read or the columns cannot be used.
    """
    try:
        with storage.open_input(unit.uri) as file:
            parquet = open_parquet(file)
            check_columns(parquet.schema_arrow, options)
            if image_column(parquet.schema_arrow, options) is None or unit.stop > parquet.num_row_groups:
                raise ShardError("unreadable", "it has no column of image bytes, or fewer rows than planned")
            groups = range(unit.start, unit.stop)
            rows = min(batch_size, _rows_that_fit(parquet.metadata, groups))
            for row, batch in read_row_groups(parquet, groups, unit.first_row, rows):
                for start, stop in _pieces(batch, options):
                    yield _to_samples(batch.slice(start, stop - start), row + start, options, notes)
    except (*DAMAGE, ColumnError) as error:
        raise shard_error(unit.uri, error) from error


def _pieces(batch: pa.RecordBatch, options: ReaderOptions) -> Iterator[tuple[int, int]]:
    """Cut a batch into ranges of rows that do not hold too many captions."""
    column = caption_column(batch.schema, options)
    if options.captions == "first" or column is None or not pa.types.is_nested(batch.schema.field(column[0]).type):
        return iter([(0, batch.num_rows)])
    counts = pc.fill_null(pc.list_value_length(batch.column(column[0])), 0)
    return split_by_captions(counts.to_pylist())


def _rows_that_fit(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return how many rows of average size make MAX_BATCH_BYTES; a batch is in memory before its sizes are known."""
    found = [metadata.row_group(group) for group in groups]
    num_bytes, rows = sum(group.total_byte_size for group in found), sum(group.num_rows for group in found)
    return max(1, MAX_BATCH_BYTES * rows // num_bytes) if num_bytes > 0 and rows > 0 else MAX_BATCH_BYTES


def read_row_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], first_row: int, batch_size: int, columns: list[str] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (place of the first row, batch). Damage costs the rest of its row group and no more.

    Args:
        parquet: the file.
        groups: numbers of consecutive row groups.
        first_row: place of their first row.
        batch_size: maximum number of rows in a batch.
        columns: names of the columns to read; all by default.
    Raises:
        ShardError: after all readable rows, naming those that cannot be read.
    """
    row, start, lost = first_row, first_row, []
    try:
        for batch in parquet.iter_batches(batch_size, list(groups), columns, use_threads=False):
            batch.validate()
            yield row, batch
            row += batch.num_rows
    except DAMAGE as error:
        if storage.is_of_the_machine(error):
            raise
        lost.append(f"{type(error).__name__}: {error}")
    if not lost and row == first_row + sum(parquet.metadata.row_group(group).num_rows for group in groups):
        return
    lost.clear()
    for group in groups:  # again, one by one, without the rows that were yielded already
        stop = start + parquet.metadata.row_group(group).num_rows
        problem = "it ends early"
        try:
            for batch in _row_by_row(parquet, group, row - start, batch_size, columns) if row < stop else ():
                yield row, batch
                row += batch.num_rows
        except DAMAGE as error:
            if storage.is_of_the_machine(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        if row < stop:
            lost.append(f"rows {row:,} to {stop - 1:,} cannot be read ({problem})")
        row, start = max(row, stop), stop
    if lost:
        more = f"; {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
        raise ShardError("unreadable", "; ".join(lost[:_NAMED]) + more)


def _row_by_row(
    parquet: pq.ParquetFile, group: int, skipped: int, batch_size: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a group after the first `skipped` ones, up to the damaged row, wherever batches would end."""
    waiting: list[pa.RecordBatch] = []
    failure = None
    rows = parquet.iter_batches(1, [group], columns, use_threads=False)
    for place in itertools.count():
        try:
            row = next(rows, None)
            if row is not None:
                row.validate()
        except DAMAGE as error:
            if storage.is_of_the_machine(error):
                raise
            row, failure = None, error
        if row is not None and place >= skipped:
            waiting.append(row)
        if waiting and (row is None or len(waiting) == batch_size):
            yield pa.concat_batches(waiting)
            waiting = []
        if row is None:
            break
    if failure is not None:
        raise failure


def _to_samples(batch: pa.RecordBatch, first_row: int, options: ReaderOptions, notes: Counter) -> pa.RecordBatch:
    schema = batch.schema
    image_name, key_name = image_column(schema, options), key_column(schema, options)
    caption_name = caption_column(schema, options)
    image = _image_bytes(batch.column(image_name))
    rows = pa.array(range(first_row, first_row + batch.num_rows), pa.int64())
    keys = rows.cast(pa.string())
    if key_name:
        found = (key_text(value) for value in _values(batch.column(key_name), Counter()))
        keys = pa.array([key or str(row) for key, row in zip(found, rows.to_pylist(), strict=True)])
    offered = _offered(batch, image)
    image, image_rejects = _within_limit(image, options)
    captions = _captions(batch, caption_name, offered, options)
    used = {image_name, key_name, caption_name and caption_name[0], *(column.field for column in options.columns)}
    values: dict[str, Any] = {
        "key": keys,
        "row": rows,
        "image": image,
        "image_reject": image_rejects,
        "metadata": _metadata(batch, used, notes),
        IMAGE_URI: pa.nulls(batch.num_rows, pa.string()),
    }
    for column in options.columns:
        found = batch.column(column.field) if column.field in schema.names else pa.nulls(batch.num_rows)
        with lost_values(column, notes) as lost:
            values[column.name] = _cast(found, column.arrow_type, lost)
    target = samples_schema(options.columns, options.captions)
    for name in ("caption", "caption_reject", ALL_CAPTIONS, NUM_CAPTIONS):
        if name in target.names:
            values[name] = pa.array([fields.get(name) for fields in captions], target.field(name).type)
    return pa.RecordBatch.from_arrays([values[name] for name in target.names], schema=target)


def _image_bytes(array: pa.Array) -> pa.Array:
    if pa.types.is_struct(array.type):
        # .field() ignores the struct's own nulls; flatten() respects them.
        array = array.flatten()[array.type.get_field_index("bytes")]
    return array.cast(pa.binary())


def _within_limit(image: pa.Array, options: ReaderOptions) -> tuple[pa.Array, pa.Array]:
    """Return the images without those over the limit, and the rejects of those."""
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
    """Return for each row whether it offers anything; rows that img2dataset failed to download do not."""
    if "status" not in batch.schema.names:
        return [True] * batch.num_rows
    statuses = _values(
        batch.column(batch.schema.names.index("status")), Counter()
    )  # the column may be the user's own, so oddities in it are not counted
    return [
        not (status in _FAILED and not valid)
        for status, valid in zip(statuses, image.is_valid().to_pylist(), strict=True)
    ]


def _captions(
    batch: pa.RecordBatch, column: tuple[str, int | None] | None, offered: list[bool], options: ReaderOptions
) -> list[Mapping[str, Any]]:
    """Return for each row its caption or captions, or their rejects; nothing where they are absent."""
    if column is None:
        return [{}] * batch.num_rows
    name, index = column
    found: list[Mapping[str, Any]] = []
    for scalar, offers in zip(batch.column(name), offered, strict=True):
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
    names = [f.name for f in batch.schema if f.name not in used and not has_bytes(f.type)]
    if not names:
        return pa.nulls(batch.num_rows, pa.string())
    columns = [_values(batch.column(name), notes) for name in names]
    return pa.array([dumps(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)], pa.string())


def _values(array: pa.Array, notes: Counter) -> list[Any]:
    """Return the Python values of a column; one that Python cannot hold or decode as UTF-8 is None and counted."""
    if pa.types.is_temporal(array.type):
        try:
            array = array.cast(pa.string())  # Arrow's own text, since Python has no year after 9999
        except pa.ArrowException as error:
            if storage.is_of_the_machine(error):
                raise

    def lost(scalar: pa.Scalar, error: Exception) -> None:
        notes["values that could not be cast"] += 1

    return values_of(array, lost)


def values_of(array: pa.Array, instead: Callable[[pa.Scalar, Exception], Any]) -> list[Any]:
    """Return the Python values of a column.

    Args:
        array: of any type.
        instead: called for each value that Python cannot hold or that is not UTF-8, with the error; returns a
            substitute.
    """
    try:
        return array.to_pylist()
    except _NO_PYTHON_VALUE as error:
        if storage.is_of_the_machine(error):
            raise
        return [value_of(scalar, instead) for scalar in array]


def value_of(scalar: pa.Scalar, instead: Callable[[pa.Scalar, Exception], Any]) -> Any:
    """Return one Python value, as `values_of` does."""
    try:
        return scalar.as_py()
    except _NO_PYTHON_VALUE as error:
        if storage.is_of_the_machine(error):
            raise
        return instead(scalar, error)


def open_parquet(file: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file so that memory holds pages, not row groups."""
    # Some writers add checksums. With them, a flipped bit is found rather than embedded.
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)


def _cast(array: pa.Array, type_: pa.DataType, notes: Counter) -> pa.Array:
    try:
        found = array.cast(type_)
        found.validate(full=True)  # the cast itself does not notice text that is not UTF-8
        return found
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if storage.is_of_the_machine(error):
            raise
        return cast(_values(array, notes), type_, notes)
