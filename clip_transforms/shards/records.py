"""Read the rows of a listing as JSON objects, whatever its format. A row that cannot be read still counts as a row."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.batches import MAX_BATCH_BYTES, dumps
from clip_transforms.shards.column_types import holds_bytes
from clip_transforms.shards.inline import holds_pictures
from clip_transforms.shards.lines import DAMAGED_TEXT, Lines, read_blocks, split_lines
from clip_transforms.shards.listing_format import ListingFormat, record_limit
from clip_transforms.shards.parquet_columns import texts_in_bytes
from clip_transforms.shards.parquet_values import value_of, values_of
from clip_transforms.shards.row_groups import open_parquet, read_row_groups
from clip_transforms.shards.unit import ReaderOptions, ShardError

_ROWS_AT_ONCE = 1_000
_SHOWN = 200  # bytes that are kept of a row that cannot be read
_ESCAPED_QUOTE = re.compile(rb'(\\+)"')
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)


class Record(NamedTuple):
    """A row of a listing.

    Attributes:
        row: place in the listing, from 0; blank lines do not count.
        text: a JSON object in UTF-8, with lone surrogates for bytes that were not UTF-8; None for the record that
            follows the last row of a damaged listing.
        problem: the reason why the row cannot be read; `text` is then only its beginning.
        short: whether the row has fewer fields than the header.
        merged: whether quotes join lines to this row that look like rows themselves.
    """

    row: int
    text: bytes | None
    problem: str | None = None
    short: bool = False
    merged: bool = False

    def fields(self) -> dict[str, Any]:
        """Parse the fields of the row.

        Raises:
            ValueError: if it is not a JSON object.
            RecursionError: if it is nested too deeply.
        """
        fields = json.loads((self.text or b"").decode("utf-8", "surrogatepass"))
        if not isinstance(fields, dict):
            raise ValueError("a value of another kind")
        return fields


def read_records(uri: str, form: ListingFormat) -> Iterator[Record]:
    """Stream all rows in order.

    If the listing is damaged or cannot be read to its end, the last record has no text.
    """
    row = -1
    try:
        with storage.open_input(uri) as file:
            for record in _READERS[form.kind](file, form):
                row = record.row
                yield record
    except (ShardError, *DAMAGED_TEXT) as error:
        if storage.is_of_the_machine(error):
            raise
        yield Record(row + 1, None, f"after row {row:,}: {error}" if row >= 0 else str(error))


def parquet_format(uri: str, schema: pa.Schema, options: ReaderOptions) -> ListingFormat:
    """Return the format of a Parquet listing, whose first row tells whether it holds pictures as text."""
    texts = texts_in_bytes(schema, options)
    form = ListingFormat("parquet", schema.names, max_record_bytes=record_limit(True, options), texts=texts)
    first = next(read_records(uri, form), None)
    limit = record_limit(first is not None and holds_pictures(first.text or b""), options)
    return dataclasses.replace(form, max_record_bytes=limit)


def _decode(line: bytes) -> str:
    """Decode UTF-8; other bytes become lone surrogates, so that one bad field leaves the other fields intact."""
    return line.decode("utf-8", "surrogateescape")


def _too_long(line: bytes, form: ListingFormat) -> str | None:
    limit = form.max_record_bytes
    return f"the row has more than {limit:,} bytes" if len(line) > limit else None


def _json_record(row: int, text: bytes, form: ListingFormat) -> Record:
    problem = _too_long(text, form)
    return Record(row, text[:_SHOWN] if problem else _decode(text).strip().encode("utf-8", "surrogatepass"), problem)


def _lines_of_json(file: IO[bytes], form: ListingFormat) -> Iterator[Record]:
    lines = split_lines(read_blocks(file), form.line_end, form.max_record_bytes)
    for row, line in enumerate(line for line in lines if line.strip()):
        yield _json_record(row, line, form)


def _array_of_json(file: IO[bytes], form: ListingFormat) -> Iterator[Record]:
    """Yield the elements of an array.

    Raises:
        ShardError: if the array does not end, an element is too long to be held, or something follows the array.
    """
    blocks = read_blocks(file)
    text = b""
    place = start = depth = row = 0
    while block := b"".join(itertools.islice(blocks, 1 + len(text) // (1 << 20))):
        text, place, start = text[start:] + block, place - start, 0
        for token in _STRING_OR_BRACKET.finditer(text, place):
            what = token[0]
            if what == b'"':
                place = token.start()  # the string ends in a later block
                break
            place = token.end()
            if what in b"[{":
                depth += 1
                start = place if depth == 1 else start
            elif depth == 1 and what in b",]":
                if text[start : place - 1].strip():
                    yield _json_record(row, text[start : place - 1], form)
                    row += 1
                start = place
            depth -= what in b"]}"
            if depth == 0 and what == b"}":
                raise ShardError("unreadable", "a brace ends its array")
            if depth == 0:
                if (text[place:] + next(blocks, b"")).strip():
                    raise ShardError("unreadable", "something follows the array")
                return
        else:
            place = len(text)
        if len(text) - start > form.max_record_bytes:
            raise ShardError("unreadable", f"the next row has more than {form.max_record_bytes:,} bytes")
    raise ShardError("unreadable", "the file ends before its array does")


def _delimited(file: IO[bytes], form: ListingFormat) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), form.max_record_bytes))
    lines = Lines(split_lines(read_blocks(file), form.line_end, form.max_record_bytes))
    names = form.names or []
    white = bytes(set(b" \t\r\v\f") - set(form.separator.encode()))  # in a TSV, a line of tabs is a row of empty fields
    rows = (line for line in lines if line.strip(white))
    for row, line in enumerate(itertools.islice(rows, form.first_line + 1, None)):
        fields, problem, merged = _fields(line, lines, form)
        while len(fields) > len(names) and not fields[-1].strip():
            fields.pop()  # some programs end a row with separators
        if problem is None and len(fields) > len(names):
            problem = f"the row has {len(fields):,} fields, but the header has {len(names):,}"
        if problem is not None:
            yield Record(row, line[:_SHOWN], problem)
        else:
            values = dict(itertools.zip_longest(names, fields))
            yield Record(row, _encode(values), None, len(fields) < len(names), merged)


def _fields(line: bytes, lines: Lines, form: ListingFormat) -> tuple[list[str], str | None, bool]:
    """Return the fields of the row that begins with `line`, a problem if there is one, and whether it looks merged.

    A quoted field may continue on further lines. If the quotes do not match, the line alone is the row, so that a stray
    quote costs one row and not the rest of the listing.
    """
    plain = _split(line, form)
    problem = _too_long(line, form)
    if problem or b'"' not in line:
        return plain, problem, False
    expected = len(form.names or [])
    unquoted = form.separator == "\t" and not form.quoting  # most programs that write TSV do not quote
    try:
        fields, taken = _parse(line, lines, form)
    except csv.Error as error:
        if unquoted and len(plain) == expected:
            return plain, None, False
        escaped = _parse_escaped(line, lines, form)
        return (escaped, None, False) if escaped else ([], f"its quotes do not fit: {error}", False)
    rows = [len(plain) == expected, *(len(_split(further, form)) == expected for further in taken)]
    if unquoted and all(rows) and (expected > 1 or not taken):
        lines.put_back(taken)
        return [_unquote(field) for field in plain], None, False
    if taken and b'\\"' in line:
        lines.put_back(taken)
        if escaped := _parse_escaped(line, lines, form):
            return escaped, None, False
        fields, taken = _parse(line, lines, form)
    return fields, None, bool(taken) and rows[0] and 2 * sum(rows) > len(rows)


def _split(line: bytes, form: ListingFormat) -> list[str]:
    fields = _decode(line).removesuffix("\r").split(form.separator)
    return [field.lstrip(" ") for field in fields] if form.padded else fields


def _unquote(field: str) -> str:
    """Return a field without its quotes if only a program that quotes writes it so, with doubled quotes inside."""
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"') if '""' in inner or "\r" in inner else field


def _parse(line: bytes, lines: Lines, form: ListingFormat, escaped: bool = False) -> tuple[list[str], list[bytes]]:
    """Parse a row with its quotes.

    Args:
        line: its first line.
        lines: gives further lines; if an error is raised, takes back those that were taken.
        form: the separator.
        escaped: whether a back slash stands before a quote that belongs to the text.
    Returns:
        The fields, and the further lines that belong to the row.
    Raises:
        csv.Error: if the quotes do not match.
    """
    taken: list[bytes] = []

    def more() -> Iterator[str]:
        num_bytes = len(line)
        for further in itertools.chain([line], _noted(lines, taken)):
            num_bytes += len(further) if taken else 0
            if num_bytes > form.max_record_bytes:
                return
            yield _decode(_ESCAPED_QUOTE.sub(_double, further) if escaped else further) + "\n"

    try:
        reader = csv.reader(more(), delimiter=form.separator, strict=True, skipinitialspace=form.padded)
        return next(reader), taken
    except csv.Error:
        lines.put_back(taken)
        raise


def _noted(lines: Iterable[bytes], taken: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        taken.append(line)
        yield line


def _double(match: re.Match[bytes]) -> bytes:
    """Return quotes as CSV has them for an escaped quote, with half the back slashes before it."""
    count = len(match[1])
    return b"\\" * (count // 2) + (b'""' if count % 2 else b'"')


def _parse_escaped(line: bytes, lines: Lines, form: ListingFormat) -> list[str] | None:
    """Return the fields of a row in which back slashes escape quotes, as Spark and R write it; None if it is none."""
    if b'\\"' not in line:
        return None
    try:
        fields, taken = _parse(line, lines, form, escaped=True)
    except csv.Error:
        return None
    if len(fields) == len(form.names or []):
        return fields
    lines.put_back(taken)
    return None


def _parquet(file: IO[bytes], form: ListingFormat) -> Iterator[Record]:
    parquet = open_parquet(file)
    names = [f.name for f in parquet.schema_arrow if f.name in form.texts or not holds_bytes(f.type)]
    at_once = _rows_at_once(parquet.metadata)
    for row, batch in read_row_groups(parquet, range(parquet.num_row_groups), 0, at_once, names):
        columns = [values_of(batch.column(name), _as_text) for name in names]
        for place in (place for place, name in enumerate(names) if name in form.texts):
            columns[place] = [value if value is None else _decode(value) for value in columns[place]]
        for place, values in enumerate(zip(*columns, strict=True)):
            text = _encode(dict(zip(names, values, strict=True)))
            problem = _too_long(text, form)
            yield Record(row + place, text[:_SHOWN] if problem else text, problem)


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """Return how many rows are held at a time: fewer where they are large."""
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if num_bytes <= 0 or metadata.num_rows <= 0:
        return _ROWS_AT_ONCE
    return max(1, min(_ROWS_AT_ONCE, MAX_BATCH_BYTES * metadata.num_rows // num_bytes))


def _as_text(scalar: pa.Scalar, error: Exception) -> Any:
    """Return a value that Python cannot hold as text; in a text that is not UTF-8, bytes become lone surrogates.

    Of a list, the other entries are kept as they are.
    """
    if isinstance(scalar, pa.ListScalar):
        return [value_of(entry, _as_text) for entry in scalar.values]
    return _decode(error.object) if isinstance(error, UnicodeDecodeError) else str(scalar)


def _encode(values: dict[str, Any]) -> bytes:
    return dumps(values).encode("utf-8", "surrogatepass")


_READERS = {"delimited": _delimited, "lines": _lines_of_json, "array": _array_of_json, "parquet": _parquet}
