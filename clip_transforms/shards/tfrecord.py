"""Read TFRecords of `tf.train.Example`, as img2dataset writes them. TensorFlow is not needed."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import (
    MAX_METADATA_BYTES,
    Readable,
    batch_samples,
    caption_fields,
    dumps,
    key_text,
    read_reject,
    read_up_to,
    too_large,
)
from clip_transforms.shards.crc32c import masked_crc32c
from clip_transforms.shards.hive import fill_in_all
from clip_transforms.shards.json_fields import SeenFields, field_names, json_field
from clip_transforms.shards.parquet_columns import KEY_COLUMNS, find
from clip_transforms.shards.tar import DAMAGE
from clip_transforms.shards.tar_bytes import decompressed
from clip_transforms.shards.unit import (
    CAPTION_EXTENSIONS,
    IMAGE_EXTENSIONS,
    ReaderOptions,
    ShardError,
    Unit,
    shard_error,
)

_IMAGES = (*IMAGE_EXTENSIONS, "image", "image_bytes", "bytes", "image/encoded")
_SKIPPED_AT_ONCE = 1 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def read_tfrecord(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Stream a TFRecord; a record is a sample.

    Raises:
        ShardError: if it ends early or is not a TFRecord; after the samples before the damage.
    """
    seen = SeenFields()
    try:
        samples = fill_in_all(_samples(unit, options, seen), unit.shard, options)
        yield from batch_samples(samples, options, batch_size, notes)
    finally:  # also where the limit ends the unit early
        seen.note(notes)


def _samples(unit: Unit, options: ReaderOptions, seen: SeenFields) -> Iterator[dict[str, Any]]:
    row = 0
    try:
        with storage.open_input(unit.uri) as file:
            most = options.max_image_bytes + options.max_caption_bytes + MAX_METADATA_BYTES
            for record in _records(_plain(file), most):
                yield _sample(row, record, options, seen)
                row += 1
    except ShardError as error:
        raise ShardError(error.reason, f"after {row:,} samples: {error}") from error
    except DAMAGE as error:
        damage = shard_error(unit.uri, error)
        raise ShardError(damage.reason, f"after {row:,} samples: {damage}") from error


def _plain(file: IO[bytes]) -> Readable:
    """Decompress the file, if it does not begin with a record and its first bytes are a compressed file's."""
    start = read_up_to(file, 12)
    file.seek(0)
    is_plain = len(start) == 12 and masked_crc32c(start[:8]) == struct.unpack("<I", start[8:])[0]
    return file if is_plain else decompressed(file)


def _records(file: Readable, most: int) -> Iterator[bytes | str]:
    """Yield each record, or the reason why it cannot be used.

    Raises:
        ShardError: where the next record cannot be found.
    """
    place = 0
    while header := read_up_to(file, 12):
        if len(header) < 12:
            raise ShardError("unreadable", f"the TFRecord ends in a record's header, at byte {place + len(header):,}")
        length, checksum = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != checksum:
            raise ShardError("unreadable", f"no TFRecord, or damaged: the length at byte {place:,} fails its checksum")
        if length > most:
            missing = length + 4
            while missing and (piece := file.read(min(missing, _SKIPPED_AT_ONCE))):
                missing -= len(piece)
            record: bytes | str = f"the record has {length:,} bytes, but the limits allow {most:,}"
        else:
            data, end = read_up_to(file, length), read_up_to(file, 4)
            missing = length + 4 - len(data) - len(end)
            matches = not missing and masked_crc32c(data) == struct.unpack("<I", end)[0]
            record = data if matches else f"the record at byte {place:,} fails its checksum"
        if missing:
            raise ShardError(
                "unreadable", f"the TFRecord ends in the record at byte {place:,}, {missing:,} bytes early"
            )
        yield record
        place += 16 + length


def _sample(row: int, record: bytes | str, options: ReaderOptions, seen: SeenFields) -> dict[str, Any]:
    try:
        features = record if isinstance(record, str) else parse_example(record)
    except (ValueError, IndexError, struct.error, RecursionError) as error:
        features = f"the record is no tf.train.Example: {error}"
    if isinstance(features, str):
        reject = read_reject("unreadable", features, None if isinstance(record, str) else len(record))
        return {"key": str(row), "row": row, "image_reject": reject, "caption_reject": reject}
    key = _named(features, options.key_column, KEY_COLUMNS)
    image = _named(features, options.image_column, _IMAGES)
    offered = {name: value for name, value in features.items() if value != b""}  # an empty text offers nothing
    caption = _named(offered, options.caption_column, CAPTION_EXTENSIONS) or _named(features, None, CAPTION_EXTENSIONS)
    shown = {name: text for name, value in features.items() if name != image and (text := _shown(value)) is not None}
    sample: dict[str, Any] = {"key": key_text(features.get(key or "")) or str(row), "row": row}
    sample |= _image(features.get(image) if image else None, options)
    value = (
        features[caption] if caption is not None and caption in features else json_field(features, caption or "caption")
    )
    sample |= caption_fields([_text_or_bytes(v) for v in value] if isinstance(value, list) else value, options)
    sample |= {column.name: shown.get(column.field) for column in options.columns}
    taken = {key, caption, *(column.field for column in options.columns)}
    rest = {name: value for name, value in shown.items() if name not in taken}
    sample["metadata"] = dumps(rest) if rest else None
    seen.add(sample, field_names(rest))
    return sample


def _named(features: dict[str, Any], asked: str | None, usual: Sequence[str]) -> str | None:
    return asked or find(list(features), usual)


def _image(value: Any, options: ReaderOptions) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, bytes):
        what = f"{len(value):,} values" if isinstance(value, list) else repr(value)
        return {
            "image_reject": read_reject("unreadable", f"the image is {what}, but it must be one text of bytes", None)
        }
    return (
        {"image": value}
        if len(value) <= options.max_image_bytes
        else too_large("image", len(value), options.max_image_bytes)
    )


def _text_or_bytes(value: Any) -> Any:
    """Return text that is UTF-8 as such, and every other value as it is."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _shown(value: Any) -> Any:
    """Return a value as JSON has it; None if it is binary."""
    if isinstance(value, list):
        values = [_shown(item) for item in value]
        return None if None in values else values
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return None


def parse_example(data: bytes) -> dict[str, Any]:
    """Parse a serialised `tf.train.Example`.

    Returns:
        Name → value of each feature: bytes, an int or a float; a list if it has several values, None if it has none.
    Raises:
        ValueError: or IndexError or struct.error, if it is none.
    """
    features: dict[str, Any] = {}
    for number, message in _fields(memoryview(data)):
        for inner, entry in _fields(message) if number == 1 else ():
            if inner == 1:
                parts = dict(_fields(entry))
                values = _values(parts.get(2, memoryview(b"")))
                name = _bytes(parts.get(1, b"")).decode()
                features[name] = values[0] if len(values) == 1 else values or None
    return features


def _values(feature: memoryview) -> list[Any]:
    """Return the values of a `tf.train.Feature`: a list of bytes (1), of floats (2) or of int64 (3)."""
    values: list[Any] = []
    for kind, message in _fields(feature):
        for _, value in _fields(message):
            if kind == 1:
                values.append(_bytes(value))
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", _bytes(value))
            elif kind == 3:
                values += [value] if isinstance(value, int) else _packed(value)
    return [value - (1 << 64) if isinstance(value, int) and value >= 1 << 63 else value for value in values]


def _bytes(value: Any) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return bytes(value)


def _packed(data: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(value)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a message: an int for a varint, else bytes."""
    if isinstance(data, int):
        raise ValueError("a number where a message belongs")
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        wire, start = tag & 7, place
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if wire not in (_FIXED64, _BYTES, _FIXED32):
            raise ValueError(f"wire type {wire} at byte {start}")
        length = 8 if wire == _FIXED64 else 4
        if wire == _BYTES:
            length, start = _varint(data, place)
        place = start + length
        if place > len(data):
            raise ValueError(f"a field of {length:,} bytes at byte {start:,} of {len(data):,}")
        yield tag >> 3, data[start:place]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError(f"a number of more than ten bytes before byte {place:,}")
