"""Read a column of embeddings from the pages of a Parquet file, without the levels of its lists.

Arrow decodes two levels for each value of a list and puts the lists together from them, at 0.2 to 0.3 GB/s a core. Our
parts hold lists of d values or null, so the levels say nothing but which lists are null. Here the values go straight
from their pages into an array. A column that is written in any other way is left to Arrow: `UnusualError` says so.

The format is described by the Parquet project: "File Format", "Encodings" and `parquet.thrift`. Headers of pages are in
Thrift's compact encoding.
"""

from __future__ import annotations

import functools
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_DATA_PAGE, _PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 0, 3, 9
_PRESENT, _NULL = 3, 0  # levels of a value, and of a list that is null
_WEIGHTS = np.array([1, 2], np.uint8)  # of the bits of a level
_TYPES: dict[str, np.dtype] = {"FLOAT": np.dtype("<f4"), "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2")}


class UnusualError(Exception):
    """The column is not written as our parts are, or is damaged; Arrow reads it, or says what is wrong."""


class Lists(NamedTuple):
    """Lists of d values: `valid` bool [n] says which are not null, and `values` [m, d] holds these."""

    valid: np.ndarray
    values: np.ndarray


def read_embeddings(file: pq.ParquetFile, opened: IO[bytes], group: int, name: str, d: int) -> Lists:
    """Read a column of embeddings of a row group, the fast way if its pages are as our parts have them.

    Args:
        file: the open Parquet file.
        opened: the same file, for its bytes.
        group: number of the row group.
        name: `image_embedding` or `caption_embedding`.
        d: number of values of an embedding.
    """
    rows = file.metadata.row_group(group).num_rows
    try:
        chunk = find_chunk(file.metadata, group, name)
        opened.seek(chunk.start)
        return read_lists(opened.read(chunk.size), chunk, rows, d)
    except UnusualError:
        # Not pq.read_table; see `clip_transforms/parts/reader.py`.
        column = file.read_row_group(group, [name], use_threads=False).column(name).combine_chunks()
        values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
        return Lists(column.is_valid().to_numpy(zero_copy_only=False), values.reshape(-1, d))


def as_array(lists: Lists) -> pa.FixedSizeListArray:
    """Return lists as an Arrow array; the values of a null are zeros."""
    valid, values = lists
    if valid.all():
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    filled = np.zeros((len(valid), values.shape[1]), values.dtype)
    filled[valid] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(filled.ravel()), values.shape[1], mask=pa.array(~valid))


class Chunk(NamedTuple):
    """Where a column lies in a row group, and how it is written."""

    start: int
    size: int
    values: int
    codec: str
    dtype: np.dtype


def find_chunk(metadata: pq.FileMetaData, group: int, name: str) -> Chunk:
    """Find a column of lists in a row group.

    Raises:
        UnusualError: if it is written in another way than our parts.
    """
    columns = metadata.row_group(group)
    for place in range(columns.num_columns):
        column, schema = columns.column(place), metadata.schema.column(place)
        if schema.path == f"{name}.list.element":
            levels = schema.max_definition_level, schema.max_repetition_level
            half = column.physical_type == "FIXED_LEN_BYTE_ARRAY"
            usual = column.dictionary_page_offset is None and column.physical_type in _TYPES and levels == (3, 1)
            if not usual or (half and (schema.length, schema.logical_type.type) != (2, "FLOAT16")):
                break
            codec, dtype = column.compression.lower(), _TYPES[column.physical_type]
            return Chunk(column.data_page_offset, column.total_compressed_size, column.num_values, codec, dtype)
    raise UnusualError(name)


def read_lists(data: bytes, chunk: Chunk, rows: int, d: int) -> Lists:
    """Read the lists of a row group.

    Args:
        data: the bytes of the chunk.
        chunk: what they are.
        rows: number of lists, n.
        d: number of values of each.
    Raises:
        UnusualError: if they are not lists of d values and nulls, in pages as our parts have them.
    """
    try:
        return _read(memoryview(data), chunk, rows, d)
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError, pa.ArrowException) as error:
        raise UnusualError(str(error)) from error


def _read(data: memoryview, chunk: Chunk, rows: int, d: int) -> Lists:
    out, filled, place = np.empty(chunk.values, chunk.dtype), 0, 0
    levels: list[np.ndarray | int] = []  # of a page: which are present, or their number if all are
    codec = None if chunk.codec == "uncompressed" else pa.Codec(chunk.codec)
    left = chunk.values
    while left > 0:
        header, place = _struct(data, place)
        size, stored, about = header[2], header[3], header[5]
        if (header[1], about[3], about[4]) != (_DATA_PAGE, _RLE, _RLE) or about[2] not in (_PLAIN, _BYTE_STREAM_SPLIT):
            raise UnusualError(str(header))
        page = data[place : place + stored]
        if codec is not None:
            page = memoryview(codec.decompress(page, size)).cast("B")
        present, page = _levels(page, about[1], filled % d, d)
        count = about[1] if present is None else int(np.count_nonzero(present))
        _decode(page, out[filled : filled + count], about[2])
        levels.append(about[1] if present is None else present)
        filled, place, left = filled + count, place + stored, left - about[1]
    valid = _valid(levels, d)
    if len(valid) != rows or filled != np.count_nonzero(valid) * d or left:
        raise UnusualError(f"{filled} values in {rows} lists of {d}")
    return Lists(valid, out[:filled].reshape(-1, d))


def _decode(page: memoryview, out: np.ndarray, encoding: int) -> None:
    """Decode the values of a page into an array, which they must fill."""
    source, width = np.frombuffer(page, np.uint8), out.itemsize
    if len(source) != out.nbytes:
        raise UnusualError(f"{len(source)} bytes for {out.nbytes}")
    if encoding == _PLAIN:
        out[:] = source.view(out.dtype)
        return
    to = out.view(np.uint8).reshape(-1, width)
    for byte in range(width):  # the first bytes of all values, then the second ones, and so on
        to[:, byte] = source[byte * len(out) : (byte + 1) * len(out)]


def _levels(page: memoryview, count: int, inside: int, d: int) -> tuple[np.ndarray | None, memoryview]:
    """Read the levels before the values of a page.

    Args:
        page: the page.
        count: number of levels.
        inside: number of values of the list that the page begins in; 0 if it begins with a list.
        d: number of values of a list.
    Returns:
        Which of the levels are present, bool [count], or None if all are; and the rest of the page.
    """
    repeats, page = _prefixed(page)
    defined, page = _prefixed(page)
    header, place = _varint(defined, 0)
    if not header & 1 and header >> 1 >= count and defined[place] == _PRESENT:  # one run, as it mostly is
        begins, present = _begins_of_lists(bytes(repeats), count, inside, d), None
    else:
        levels = _decode_levels(defined, count, 2)
        present = levels == _PRESENT
        if not (present | (levels == _NULL)).all():
            raise UnusualError("an empty list, or a null in a list")
        own = (np.cumsum(present) - 1 + inside) % d == 0
        begins = np.array_equal(_decode_levels(repeats, count, 1) == 0, own | ~present)
    if not begins:
        raise UnusualError(f"lists of other lengths than {d}")
    return present, page


@functools.lru_cache(maxsize=64)
def _begins_of_lists(repeats: bytes, count: int, inside: int, d: int) -> bool:
    """Tell whether lists of d values begin where they must. Pages without nulls mostly have the same levels."""
    return np.array_equal(_decode_levels(memoryview(repeats), count, 1) == 0, (np.arange(count) + inside) % d == 0)


def _prefixed(page: memoryview) -> tuple[memoryview, memoryview]:
    """Cut the levels off a page, whose length stands before them."""
    length = 4 + int.from_bytes(page[:4], "little")
    return page[4:length], page[length:]


def _decode_levels(data: memoryview, count: int, bits: int) -> np.ndarray:
    """Decode levels of one or two bits, in runs of one level and runs of eights of levels; uint8 [count]."""
    found: list[np.ndarray] = []
    place = read = 0
    while read < count:
        header, place = _varint(data, place)
        run = header >> 1
        if header & 1:
            packed = np.frombuffer(data[place : place + bits * run], np.uint8)
            levels = np.unpackbits(packed, bitorder="little").reshape(-1, bits) @ _WEIGHTS[:bits]
            place, run = place + bits * run, 8 * run
        else:
            levels, place = np.full(min(run, count - read), data[place], np.uint8), place + 1
        if not run or not len(levels):
            raise UnusualError("a run of no levels")
        found.append(levels)
        read += run
    return np.concatenate(found)[:count]


def _valid(levels: list[np.ndarray | int], d: int) -> np.ndarray:
    """Return which lists are not null: of a null list there is one level, of others one for each value."""
    if all(isinstance(of, int) for of in levels):
        return np.ones(sum(levels) // d, bool)
    present = np.concatenate([np.ones(of, bool) if isinstance(of, int) else of for of in levels])
    nulls = np.flatnonzero(~present)
    before = np.cumsum(present)[nulls]
    if (before % d).any():
        raise UnusualError("a null inside a list")
    valid = np.ones(int(present.sum()) // d + len(nulls), bool)
    valid[before // d + np.arange(len(nulls))] = False
    return valid


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and return it and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if byte < 0x80:
            return value, place


def _struct(data: memoryview, place: int) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact encoding: field → value, of the types that headers of pages have."""
    fields: dict[int, Any] = {}
    field = 0
    while head := data[place]:
        place += 1
        kind = head & 0x0F
        if head >> 4:
            field += head >> 4
        else:
            number, place = _varint(data, place)
            field = (number >> 1) ^ -(number & 1)
        if kind in (1, 2):
            fields[field] = kind == 1
        elif kind in (4, 5, 6):
            number, place = _varint(data, place)
            fields[field] = (number >> 1) ^ -(number & 1)
        elif kind == 8:
            length, place = _varint(data, place)
            fields[field], place = data[place : place + length], place + length
        elif kind == 12:
            fields[field], place = _struct(data, place)
        else:
            raise UnusualError(f"a field of type {kind}")
    return fields, place + 1
