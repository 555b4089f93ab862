"""Read the rows of a listing as JSON objects, whatever its format. A row that cannot be read still counts as a row."""

from __future__ import annotations

import collections
import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import dumps
from clip_transforms.shards.parquet import DAMAGE, open_parquet, read_row_groups, value_of, values_of
from clip_transforms.shards.parquet_columns import holds_bytes
from clip_transforms.shards.unit import ShardError

MAX_RECORD_BYTES = 1 << 20
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BLOCK = 1 << 20
_SHOWN = 200  # bytes that are kept of a row that cannot be read


class Record(NamedTuple):
    """A row of a listing.

    Attributes:
        row: place in the listing, from 0; blank lines do not count.
        text: a JSON object in UTF-8, with lone surrogates for bytes that were not UTF-8; None for the record that
            follows the last row of a damaged listing.
        problem: the reason why the row cannot be read; `text` is then only its beginning.
        short: whether the row has fewer fields than the header.
    """

    row: int
    text: bytes | None
    problem: str | None = None
    short: bool = False

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


def check_line_ends(uri: str) -> None:
    """Refuse a text listing whose lines we could not tell apart.

    Raises:
        ValueError: if its lines end with carriage returns alone, as those of old Macs and some spreadsheets do.
    """
    with storage.open_input(uri) as file:
        block = file.read(_BLOCK)
    if b"\r" in block and b"\n" not in block:
        raise ValueError(
            "its lines end with carriage returns alone; convert them to line feeds, as tr '\\r' '\\n' < OLD > NEW does"
        )


def read_header(uri: str) -> list[str]:
    """Return the names of the columns of a CSV or TSV.

    Raises:
        ValueError: if the first line is not a header.
    """
    with storage.open_input(uri) as file:
        line = next((line for line in _lines(file) if line.strip()), b"")
    try:
        fields = next(csv.reader([_decode(line).encode().decode()], delimiter=_delimiter(uri), strict=True))
    except (csv.Error, UnicodeError):
        raise ValueError("its first line is not a header in UTF-8") from None
    if any("\0" in name for name in fields):
        raise ValueError("its first line is not a header in UTF-8")
    twice = [name for name, count in collections.Counter(fields).items() if count > 1 and name]
    if twice:
        raise ValueError(f"two of its columns are called {twice[0]!r}")
    return fields


def read_records(uri: str) -> Iterator[Record]:
    """Stream all rows in order.

    If the listing is damaged or cannot be read to its end, the last record has no text.
    """
    extension = uri.rpartition(".")[2].lower()
    row = -1
    try:
        with storage.open_input(uri) as file:
            if extension == "parquet":
                records = _parquet(file)
            elif extension in _DELIMITERS:
                records = _delimited(file, _delimiter(uri))
            else:
                records = _jsonl(file)
            for record in records:
                row = record.row
                yield record
    except (ShardError, *DAMAGE) as error:
        if storage.is_of_the_machine(error):
            raise
        yield Record(row + 1, None, f"after row {row:,}: {error}" if row >= 0 else str(error))


def _delimiter(uri: str) -> str:
    return _DELIMITERS[uri.rpartition(".")[2].lower()]


def _decode(line: bytes) -> str:
    """Decode UTF-8; other bytes become lone surrogates, so that one bad field leaves the other fields intact."""
    return line.decode("utf-8", "surrogateescape")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines without line feed and byte-order mark; of an overlong line, a beginning of more than the limit."""
    rest, skipping = b"", False
    first = True
    for block in itertools.chain(iter(lambda: file.read(_BLOCK), b""), [None]):
        lines = (rest + (block or b"")).split(b"\n")
        rest = lines.pop() if block is not None else b""
        for line in lines:
            if skipping:
                skipping = False
                continue
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line
            first = False
        if skipping:
            rest = b""
        elif len(rest) > MAX_RECORD_BYTES:
            yield rest
            rest, skipping, first = b"", True, False


def _too_long(line: bytes) -> str | None:
    return f"the row has more than {MAX_RECORD_BYTES:,} bytes" if len(line) > MAX_RECORD_BYTES else None


def _jsonl(file: IO[bytes]) -> Iterator[Record]:
    row = 0
    for line in _lines(file):
        if line.strip():
            problem = _too_long(line)
            text = line[:_SHOWN] if problem else _decode(line).strip().encode("utf-8", "surrogatepass")
            yield Record(row, text, problem)
            row += 1


def _delimited(file: IO[bytes], delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    lines = _Lines(line for line in _lines(file))
    header: list[str] | None = None
    row = 0
    white = bytes(set(b" \t\r\v\f") - set(delimiter.encode()))  # in a TSV, a line of tabs is a row of empty fields
    for line in lines:
        if not line.strip(white):
            continue
        fields, problem = _fields(line, lines, delimiter, len(header or ()))
        if header is None:
            header = fields
            continue
        if problem is None and len(fields) > len(header):
            problem = f"the row has {len(fields):,} fields, but the header has {len(header):,}"
        if problem is not None:
            yield Record(row, line[:_SHOWN], problem)
        else:
            values = dict(itertools.zip_longest(header, fields))
            yield Record(row, _encode(values), None, len(fields) < len(header))
        row += 1


class _Lines:
    """An iterator over lines that takes lines back."""

    def __init__(self, lines: Iterable[bytes]):
        self._lines = iter(lines)
        self._back: collections.deque[bytes] = collections.deque()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._back.popleft() if self._back else next(self._lines)

    def put_back(self, lines: Sequence[bytes]) -> None:
        self._back.extendleft(reversed(lines))


def _fields(line: bytes, lines: _Lines, delimiter: str, expected: int) -> tuple[list[str], str | None]:
    """Return the fields of the row that begins with `line`, and a problem if there is one.

    A quoted field may continue on further lines. If the quotes do not match, the line alone is the row, so that a stray
    quote costs one row and not the rest of the listing.
    """
    problem = _too_long(line)
    if problem or b'"' not in line:
        return _decode(line).removesuffix("\r").split(delimiter), problem
    taken: list[bytes] = []

    def more() -> Iterator[str]:
        yield _decode(line) + "\n"
        num_bytes = len(line)
        for further in lines:
            taken.append(further)
            num_bytes += len(further)
            if num_bytes > MAX_RECORD_BYTES:
                return
            yield _decode(further) + "\n"

    try:
        return next(csv.reader(more(), delimiter=delimiter, strict=True)), None
    except csv.Error as error:
        lines.put_back(taken)
        plain = _decode(line).removesuffix("\r").split(delimiter)
        if delimiter == "\t" and len(plain) == expected:
            return plain, None  # most programs that write TSV do not quote
        return [], f"its quotes do not fit: {error}"


def _parquet(file: IO[bytes]) -> Iterator[Record]:
    parquet = open_parquet(file)
    schema = parquet.schema_arrow
    names = [field.name for field in schema if not holds_bytes(field.type)]
    for row, batch in read_row_groups(parquet, range(parquet.num_row_groups), 0, 1_000, names):
        columns = [values_of(batch.column(name), _as_text) for name in names]
        for place, values in enumerate(zip(*columns, strict=True)):
            text = _encode(dict(zip(names, values, strict=True)))
            problem = _too_long(text)
            yield Record(row + place, text[:_SHOWN] if problem else text, problem)


def _as_text(scalar: pa.Scalar, error: Exception) -> Any:
    """Return a value that Python cannot hold as text; in a text that is not UTF-8, bytes become lone surrogates.

    Of a list, the other entries are kept as they are.
    """
    if isinstance(scalar, pa.ListScalar):
        return [value_of(entry, _as_text) for entry in scalar.values]
    return _decode(error.object) if isinstance(error, UnicodeDecodeError) else str(scalar)


def _encode(values: dict[str, Any]) -> bytes:
    return dumps(values).encode("utf-8", "surrogatepass")
