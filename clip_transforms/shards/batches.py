"""Turn samples into record batches of `schemas.samples`, with captions, metadata and columns as DATASET.md has them."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from clip_transforms.parts.counts import uncast
from clip_transforms.shards.all_captions import MAX_BATCH_CAPTIONS, all_captions, with_list
from clip_transforms.shards.json_fields import field_names
from clip_transforms.shards.unit import CAPTIONS_PER_FILE, ReaderOptions, ShardError
from schemas.samples import ALL_CAPTIONS, Column, samples_schema

# A batch ends early at this many bytes, so that a few huge files do not make a huge batch.
MAX_BATCH_BYTES = 16 << 20
# Larger JSON files and members for a user's columns are not read.
MAX_METADATA_BYTES = 16 << 20
TOO_MUCH_METADATA = "JSON files and members of more than 16 MiB, which were not read"
_SEVERAL_LINES = "text files of several lines, each read as one caption; --captions all takes each line as a caption"
_BLOCK = 1 << 20
_MAX_INT64 = (1 << 63) - 1
_encode = json.JSONEncoder(ensure_ascii=False, default=str, allow_nan=False).encode  # `json.dumps` would make it anew


class Readable(Protocol):
    """Something that bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none at the end."""


def batch_samples(
    samples: Iterable[dict[str, Any]], options: ReaderOptions, batch_size: int, notes: Counter
) -> Iterator[pa.RecordBatch]:
    """Group samples into record batches.

    Args:
        samples: dicts with names of `samples_schema`; a missing name is null. The user's columns hold a text or a JSON
            value as the source has it, and are cast here.
        options: holds the names and types of the user's columns.
        batch_size: maximum number of rows in a batch.
        notes: counter for oddities that the user should know of.
    Raises:
        ShardError: if `samples` raises one; all samples before it are yielded first.
    """
    schema = samples_schema(options.columns, options.captions)
    own = {column.name: column for column in options.columns}
    rows: list[Mapping[str, Any]] = []
    num_bytes = num_captions = 0

    def close() -> pa.RecordBatch:
        arrays = []
        for field in schema:
            values = [row.get(field.name) for row in rows]
            if field.name in own:
                with lost_values(own[field.name], notes) as lost:
                    arrays.append(cast(values, field.type, lost))
            else:
                arrays.append(pa.array(values, field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    error: ShardError | None = None
    iterator = iter(samples)
    while True:
        try:
            sample = next(iterator)
        except StopIteration:
            break
        except ShardError as damage:  # yield the samples before the damage first
            error = damage
            break
        rows.append(with_list(sample) if options.captions == "all" else sample)
        captions = rows[-1].get(ALL_CAPTIONS) or ()
        num_captions += len(captions)
        num_bytes += sum(len(caption["caption"] or "") for caption in captions)
        for value in sample.values():
            if isinstance(value, (bytes, str)):
                num_bytes += len(value)
        if len(rows) == batch_size or num_bytes >= MAX_BATCH_BYTES or num_captions >= MAX_BATCH_CAPTIONS:
            yield close()
            rows, num_bytes, num_captions = [], 0, 0
    if rows:
        yield close()
    if error is not None:
        raise error


@contextlib.contextmanager
def lost_values(column: Column, notes: Counter) -> Iterator[Counter]:
    """Yield a counter for values of a user's column that cannot be cast; the note about them names the column."""
    lost: Counter = Counter()
    yield lost
    if lost:
        notes[uncast(str(column))] += lost.total()


def cast(values: Sequence[Any], type_: pa.DataType, notes: Counter) -> pa.Array:
    """Convert Python values to an Arrow array; a value that cannot be cast becomes null and is counted."""
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
    """Return a value as JSON; NaN and infinity, which JSON lacks, become null."""
    try:
        return _encode(value)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_reject(reason: str, message: str, num_bytes: int | None) -> dict[str, Any]:
    """Return a value for `image_reject` or `caption_reject`."""
    num_bytes = None if num_bytes is None else min(num_bytes, _MAX_INT64)
    return {"reason": reason, "message": writable(message), "num_bytes": num_bytes}


def writable(text: str) -> str:
    """Replace lone surrogates, which Arrow cannot store, by question marks."""
    return text.encode("utf-8", "replace").decode()


def text_of(name: str) -> str:
    """Return a file's or a tar member's name as UTF-8; foreign bytes, which Python holds as lone surrogates, become �.

    Arrow does not take lone surrogates.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_up_to(file: Readable, limit: int) -> bytes:
    """Read `limit` bytes, or fewer if the file ends, also from a file that returns less than it is asked for.

    It reads in blocks, so that a small file does not cost a buffer of `limit` bytes.
    """
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


def caption_file_too_large(num_bytes: int | None, options: ReaderOptions) -> dict[str, Any]:
    """Return `caption_reject` for a text file over its limit; `num_bytes` is None if it was not read to its end."""
    limit = options.max_caption_file_bytes
    if options.captions == "first":
        return too_large("caption", num_bytes, limit)
    size = f"more than {limit:,} bytes" if num_bytes is None else f"{num_bytes:,} bytes"
    message = f"{size}, but a file of captions has at most {CAPTIONS_PER_FILE} times --max_caption_bytes, {limit:,}"
    return {"caption_reject": read_reject("caption too large", message, num_bytes)}


def decode_caption(data: bytes, options: ReaderOptions) -> dict[str, Any]:
    """Decode a text file to `caption`, to `caption_reject`, or to nothing if it holds only white space.

    With `--captions all`, each line is a caption. White space at both ends belongs to the file or to the line, not to
    the caption, so that the same captions give the same rows from every layout.
    """
    if len(data) > options.max_caption_file_bytes:
        return caption_file_too_large(len(data), options)
    if options.captions == "first":
        return _decode_one(data, options)
    return all_captions(data.removeprefix(codecs.BOM_UTF8).splitlines(), lambda line: _decode_one(line, options))


def note_lines(caption: str | None, options: ReaderOptions, notes: Counter) -> None:
    """Count the caption of a text file that was read as one, though it has several lines."""
    lines = caption.splitlines() if caption and options.captions == "first" else ()
    if len(lines) > 1 and sum(bool(line.strip()) for line in lines) > 1:
        notes[_SEVERAL_LINES] += 1


def _decode_one(data: bytes, options: ReaderOptions) -> dict[str, Any]:
    if len(data) > options.max_caption_bytes:
        return too_large("caption", len(data), options.max_caption_bytes)
    try:
        return _caption_of(data.decode("utf-8-sig").strip(), options)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 at byte {error.start}: {data[error.start : error.start + 8]!r}"
        return {"caption_reject": read_reject("not UTF-8", message, len(data))}


def caption_fields(value: Any, options: ReaderOptions) -> dict[str, Any]:
    """Turn a JSON or text value into `caption`, `caption_reject`, or nothing if it is absent.

    With `--captions all`, each entry of a list is a caption. Bytes are decoded like those of a file with one caption.
    """
    if options.captions == "all" and isinstance(value, list):
        return all_captions(value, lambda entry: _caption_of(entry, options))
    cure = ""
    if isinstance(value, (list, dict)) and value:
        name = next(field_names({options.caption_column or "caption": value}), "NAME")
        cure = "; --captions all takes each text of a list, and" if isinstance(value, list) else "; in tars and folders"
        cure += f" --caption_column {name!r} takes one"
    return _caption_of(value, options, cure)


def _caption_of(value: Any, options: ReaderOptions, cure: str = "") -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, bytes):
        return _decode_one(value, options)
    if not isinstance(value, str):
        message = f"the caption is {json.dumps(value, default=str)[:80]}, but it must be a text{cure}"
        return {"caption_reject": read_reject("not text", message, None)}
    try:
        num_bytes = len(value.encode())
    except UnicodeEncodeError:
        return {"caption_reject": read_reject("not UTF-8", _not_unicode(value), None)}
    if num_bytes > options.max_caption_bytes:
        return too_large("caption", num_bytes, options.max_caption_bytes)
    return {"caption": value} if value.strip() else {}


def _not_unicode(text: str) -> str:
    """Say what is wrong with a text that has lone surrogates; some of them stand for bytes of a listing."""
    try:
        data = text.encode("utf-8", "surrogateescape")
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}: {data[error.start : error.start + 8]!r}"
    except UnicodeEncodeError:
        pass  # a JSON file has half of a pair
    return f"half a surrogate pair in {text[:80]!r}"


def key_text(value: Any) -> str:
    """Return a value of a key column as text; empty if there is none."""
    if value is None:
        return ""
    return writable(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def decode_metadata(data: bytes | None, notes: Counter) -> tuple[str | None, dict[str, Any]]:
    """Decode a JSON file.

    Args:
        data: bytes of the file; None if it has more than MAX_METADATA_BYTES.
        notes: counter for files that are not JSON objects.
    Returns:
        The unchanged text and its fields; None and no fields if it is not a JSON object.
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
