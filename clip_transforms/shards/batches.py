"""Samples, read one by one, → record batches of `schemas.samples`; texts and columns as the contract wants them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from clip_transforms.shards.unit import ReaderOptions, ShardError
from schemas.samples import samples_schema

# A batch is closed early at so many bytes, so that a few huge files do not make a huge batch.
MAX_BATCH_BYTES = 16 << 20
# What is neither an image nor a caption (JSON, members of a user's columns) is not read beyond this.
MAX_METADATA_BYTES = 16 << 20
TOO_MUCH_METADATA = "JSON files and members of more than 16 MiB, which were not read"
_BLOCK = 1 << 20
_MAX_INT64 = (1 << 63) - 1


def batch_samples(
    samples: Iterable[dict[str, Any]], options: ReaderOptions, batch_size: int, notes: Counter
) -> Iterator[pa.RecordBatch]:
    """Group samples.

    Args:
        samples: dicts with the names of `samples_schema`; what is left out is null. The user's columns hold what the
            source has, a text or a JSON value, and are cast here.
        options: names and types of the user's columns.
        batch_size: the most rows of a batch.
        notes: counts what is worth telling.
    Raises:
        ShardError: what `samples` raised, after all that came before it.
    """
    schema = samples_schema(options.columns)
    types = {column.name: column.arrow_type for column in options.columns}
    rows: list[dict[str, Any]] = []
    num_bytes = 0

    def close() -> pa.RecordBatch:
        arrays = []
        for field in schema:
            values = [row.get(field.name) for row in rows]
            arrays.append(
                cast(values, types[field.name], notes) if field.name in types else pa.array(values, field.type)
            )
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    error: ShardError | None = None
    iterator = iter(samples)
    while True:
        try:
            sample = next(iterator)
        except StopIteration:
            break
        except ShardError as damage:  # what was read before the damage goes out first
            error = damage
            break
        rows.append(sample)
        num_bytes += sum(len(value) for value in sample.values() if isinstance(value, (bytes, str)))
        if len(rows) == batch_size or num_bytes >= MAX_BATCH_BYTES:
            yield close()
            rows, num_bytes = [], 0
    if rows:
        yield close()
    if error is not None:
        raise error


def cast(values: Sequence[Any], type_: pa.DataType, notes: Counter) -> pa.Array:
    """Python values → an Arrow array; what cannot be cast is null and counted."""
    return pa.array([_cast_one(value, type_, notes) for value in values], type_)


def _cast_one(value: Any, type_: pa.DataType, notes: Counter) -> Any:
    if value is None:
        return None
    try:
        value = value.decode() if isinstance(value, bytes) else value
        if pa.types.is_string(type_):
            text = value if isinstance(value, str) else dumps(value)
            text.encode()
            return text
        return pa.scalar(value.strip() if isinstance(value, str) else value).cast(type_).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError, UnicodeError):
        notes["values that could not be cast"] += 1
        return None


def dumps(value: Any) -> str:
    """JSON, in which what JSON does not know (NaN, infinity) is null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_reject(reason: str, message: str, num_bytes: int | None) -> dict[str, Any]:
    """The value of `image_reject` or `caption_reject`."""
    num_bytes = None if num_bytes is None else min(num_bytes, _MAX_INT64)
    return {"reason": reason, "message": writable(message), "num_bytes": num_bytes}


def writable(text: str) -> str:
    """A text without what cannot be written: names of files and broken texts may hold lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def text_of(name: str) -> str:
    """Return a file's or a tar member's name as UTF-8; foreign bytes, which Python holds as lone surrogates, become �.

    Arrow does not take lone surrogates.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_up_to(file: IO[bytes], limit: int) -> bytes:
    """The next bytes of a file: `limit` of them, or all that there are; a file may hand out less than it was asked."""
    pieces, missing = [], limit
    while missing > 0 and (piece := file.read(min(missing, _BLOCK))):
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(modality: str, num_bytes: int | None, limit: int, where: str = "") -> dict[str, Any]:
    """Return `image_reject` or `caption_reject` for a modality over its limit.

    Args:
        modality: `image` or `caption`.
        num_bytes: its size; None if it was read only up to the limit.
        limit: the most bytes that are allowed.
        where: put before the message.
    """
    size = f"more than {limit:,} bytes" if num_bytes is None else f"{num_bytes:,} bytes"
    message = f"{where}{size}, but --max_{modality}_bytes takes at most {limit:,}"
    return {f"{modality}_reject": read_reject(f"{modality} too large", message, num_bytes)}


def decode_caption(data: bytes, options: ReaderOptions) -> dict[str, Any]:
    """Bytes of a text file → `caption`, or nothing if there is but white space, or `caption_reject`.

    White space around it is the file's, not the caption's: the same captions give the same rows from every layout.
    """
    if len(data) > options.max_caption_bytes:
        return too_large("caption", len(data), options.max_caption_bytes)
    try:
        return caption_fields(data.decode("utf-8-sig").strip(), options)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 at byte {error.start}: {data[error.start : error.start + 8]!r}"
        return {"caption_reject": read_reject("not UTF-8", message, len(data))}


def caption_fields(value: Any, options: ReaderOptions) -> dict[str, Any]:
    """A JSON or text value → `caption`, `caption_reject`, or nothing where it is absent."""
    if value is None:
        return {}
    if not isinstance(value, str):
        message = f"the caption is {json.dumps(value, default=str)[:80]}, but it must be a text"
        return {"caption_reject": read_reject("not text", message, None)}
    try:
        num_bytes = len(value.encode())
    except UnicodeEncodeError:
        return {"caption_reject": read_reject("not UTF-8", f"half a surrogate pair in {value[:80]!r}", None)}
    if num_bytes > options.max_caption_bytes:
        return too_large("caption", num_bytes, options.max_caption_bytes)
    return {"caption": value} if value.strip() else {}


def key_text(value: Any) -> str:
    """A value of a key column as text; empty where there is none."""
    if value is None:
        return ""
    return writable(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def decode_metadata(data: bytes | None, notes: Counter) -> tuple[str | None, dict[str, Any]]:
    """Bytes of a JSON file → the text as it stood, and its fields; null and counted if it is no JSON object.

    `data` is None where there were more than MAX_METADATA_BYTES.
    """
    try:
        text = "" if data is None else data.decode("utf-8-sig")
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        notes[TOO_MUCH_METADATA if data is None else "JSON files that are not a JSON object"] += 1
        return None, {}
    return text, fields
