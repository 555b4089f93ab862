"""Find out how a listing is written, from its name and its beginning: the format, the separator, and the columns."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import re

from clip_transforms import storage
from clip_transforms.shards.inline import holds_pictures
from clip_transforms.shards.json_fields import outer_field
from clip_transforms.shards.lines import read_head
from clip_transforms.shards.parquet_columns import listing_columns
from clip_transforms.shards.unit import COMPRESSIONS, ReaderOptions

MAX_RECORD_BYTES = 1 << 20
# A row that holds its picture may be as long as the largest picture in base64, but no longer than fits into memory.
_MOST_INLINE_BYTES = 128 << 20
# The separators that are looked for, the usual one first.
_SEPARATORS = {"csv": ",\t;|", "tsv": "\t,;|"}
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_EXCEL = re.compile(rb'"?sep=([,;|\t])"?')  # a first line by which spreadsheets name the separator


class NoListingError(ValueError):
    """The file is no listing; the message goes on after its name, and says what to do."""


@dataclasses.dataclass(frozen=True)
class ListingFormat:
    """How a listing is written.

    Attributes:
        kind: `parquet`, `delimited`, `lines` (of JSON) or `array` (of JSON).
        names: names of the columns; None for JSON, whose rows name them.
        separator: separator of the fields.
        padded: whether a space follows each separator, which then belongs to it.
        quoting: whether names of columns are quoted, so that quotes around a field do not belong to it.
        first_line: number of lines before the header.
        line_end: what ends a line.
        max_record_bytes: the longest row that is read.
        empty: whether there is nothing in the file.
        texts: names of the columns of a Parquet file whose bytes are texts.
    """

    kind: str
    names: list[str] | None = None
    separator: str = ","
    padded: bool = False
    quoting: bool = False
    first_line: int = 0
    line_end: bytes = b"\n"
    max_record_bytes: int = MAX_RECORD_BYTES
    empty: bool = False
    texts: frozenset[str] = frozenset()

    @property
    def separator_name(self) -> str:
        """Return the separator as messages name it."""
        return _NAMES.get(self.separator, repr(self.separator))


def find_format(uri: str, options: ReaderOptions) -> ListingFormat:
    """Find out how a text listing is written.

    Raises:
        NoListingError: if it is JSON that is not a list of rows.
        ValueError: if its header cannot be read; the message says why.
    """
    with storage.open_input(uri) as file:
        head = read_head(file)
    # The lines of old Macs and some spreadsheets end with carriage returns alone.
    end = b"\r" if b"\r" in head and b"\n" not in head else b"\n"
    limit = record_limit(holds_pictures(head), options)
    extension = extension_of(uri)
    if extension in _SEPARATORS:
        return _delimited(head, _SEPARATORS[extension], options, end, limit)
    kind = _json_kind(head, extension == "json")
    return ListingFormat(kind, line_end=end, max_record_bytes=limit, empty=not head.strip(b" \t\r\n[]"))


def record_limit(pictures: bool, options: ReaderOptions) -> int:
    """Return how many bytes a row may have.

    Args:
        pictures: whether rows hold their pictures.
        options: limits the pictures.
    """
    return MAX_RECORD_BYTES + (min(options.max_image_bytes, _MOST_INLINE_BYTES) * 4 // 3 if pictures else 0)


def extension_of(uri: str) -> str:
    """Return the extension of a listing in lower case, without that of its compression."""
    lower = uri.lower()
    return lower.removesuffix(next((c for c in COMPRESSIONS if lower.endswith(c)), "")).rpartition(".")[2]


def _delimited(head: bytes, separators: str, options: ReaderOptions, end: bytes, limit: int) -> ListingFormat:
    lines = [line for line in head.split(end) if line.strip()]
    first = 0
    if lines and (match := _EXCEL.fullmatch(lines[0].rstrip(b"\r"))):
        separators, first = match[1].decode("latin-1"), 1
    line = lines[first] if len(lines) > first else b""
    found = [
        ListingFormat("delimited", names, separator, padded, b'"' in line, first, end, limit, not line)
        for separator in separators
        for padded in (False, True)
        if (names := _names(line, separator, padded)) is not None
    ]
    if b"\0" in line:
        raise ValueError("it looks like UTF-16 without a byte-order mark, or is no text; save it as UTF-8")
    if not found:
        raise ValueError("its first line is not a header in UTF-8")
    form = max(found, key=lambda form: _worth(form, options))  # of equal ones the first
    names = form.names or []
    twice = [name for name, count in collections.Counter(names).items() if count > 1 and name]
    if twice:
        raise ValueError(f"two of its columns are called {twice[0]!r}")
    return form


def _names(line: bytes, separator: str, padded: bool) -> list[str] | None:
    """Return the names in a header; None if it is none with this separator."""
    try:
        text = line.decode()
        names = next(csv.reader([text], delimiter=separator, strict=True, skipinitialspace=padded))
    except (csv.Error, UnicodeError):
        return None
    if padded:
        if separator == "\t" or not all(name.startswith(" ") for name in text.split(separator)[1:]):
            return None
        names = [name.strip() for name in names]
    return names


def _worth(form: ListingFormat, options: ReaderOptions) -> tuple[int, int, bool]:
    """Return a key that is larger for a better reading of a header: one that makes more of the columns that we take.

    If there are none of these, messages show the reading that makes most columns.
    """
    names = form.names or []
    columns = listing_columns(tuple(names), options)
    usable = sum(outer_field(names, name) in names for name in (columns.uri, columns.caption) if name)
    return (usable, 0, False) if usable else (0, len(names), form.padded)


def _json_kind(head: bytes, is_json: bool) -> str:
    """Return whether JSON is an array, or an object on each line.

    Args:
        head: the beginning of the file.
        is_json: whether it is called `.json`, and so may hold anything.
    Raises:
        NoListingError: if it is something else.
    """
    text = head.strip()
    if re.match(rb"\[\s*[{\]]", text):
        return "array"
    if not is_json or not text:
        return "lines"
    if text.startswith(b"{") and re.search(rb'"(images|annotations)"\s*:\s*\[', text):
        raise NoListingError(
            "is in COCO's format, which keeps pictures and captions apart; make a listing of it first, with the few "
            "lines of Python under COCO in docs/usage.md"
        )
    line, _, rest = text.partition(b"\n")
    try:
        if isinstance(json.loads(line), dict) and (not rest.strip() or rest.lstrip().startswith(b"{")):
            return "lines"
    except (ValueError, RecursionError):
        pass  # the object ends on a later line
    raise NoListingError(
        'is no list of rows; write it as an array, [{"image": "a.jpg", "caption": "a cat"}, ...], or with such an '
        "object on each line"
    )
