"""Look at the beginning of a listing before the run: which columns it offers, and what will not be read."""

from __future__ import annotations

import contextlib
import itertools
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.fence import Fence, FenceError
from clip_transforms.shards.fetch import resolve
from clip_transforms.shards.inline import is_inline, is_picture
from clip_transforms.shards.json_fields import json_field, outer_field
from clip_transforms.shards.lines import DAMAGED_TEXT
from clip_transforms.shards.listing_format import MAX_RECORD_BYTES, ListingFormat, NoListingError, find_format
from clip_transforms.shards.parquet_columns import ColumnError, listing_columns, several_captions
from clip_transforms.shards.records import Record, parquet_format, read_records
from clip_transforms.shards.unit import PlanError, ReaderOptions

_LOOKED_AT = 1_000  # first rows, which stand in for a header where there is none
_LOOKED_AT_BYTES = 32 << 20  # of rows that hold pictures
_KEPT = 300  # characters of a value that is looked at
_OBJECTS = '; each row must be an object such as {"image": "a.jpg", "caption": "a cat"}, on one line or in one array'
_FORMS = {"delimited": "; a CSV's first line must name its columns", "lines": _OBJECTS, "array": _OBJECTS}
_LLAVA = "conversations[1].value"  # the first answer in LLaVA's JSON


class PlannedListing(NamedTuple):
    """A listing that will be read.

    Attributes:
        form: how it is written.
        offers: the modalities that it has columns for.
        hints: lines that say what will not come of it.
    """

    form: ListingFormat
    offers: list[str]
    hints: list[str]


class Beginning(NamedTuple):
    """What the first rows of a listing tell.

    Attributes:
        names: names of the columns.
        offers: the modalities that it has columns for.
        uris: the URIs in these rows.
        pictures: names of other columns that hold pictures, as `data:` URIs or as base64.
        listed: columns whose values are lists of objects.
    """

    names: list[str]
    offers: list[str]
    uris: list[str]
    pictures: list[str]
    listed: list[str]


def plan_listing(uri: str, schema: pa.Schema | None, options: ReaderOptions) -> PlannedListing:
    """Find out how a listing is written, and whether it can be used.

    Args:
        uri: URI of the listing.
        schema: of a Parquet file; None for a text.
        options: names the columns to take if they are not the usual ones.
    Raises:
        PlanError: if it cannot be read, or is no listing that we know.
    """
    try:
        form = find_format(uri, options) if schema is None else parquet_format(uri, schema, options)
    except NoListingError as error:
        raise PlanError(f"{uri} {error}") from None
    except (ValueError, *DAMAGED_TEXT) as error:
        if storage.is_of_the_machine(error):
            raise
        raise PlanError(f"{uri} cannot be read: {error}; mend it or leave it out of --input") from None
    try:
        first = _inspect(uri, form, options)
    except ColumnError as error:
        raise PlanError(f"{error} ({uri})") from None
    if not first.offers and not form.empty:
        raise PlanError(_no_columns(uri, form, first))
    if form.kind == "array" and _is_llava(first):
        raise PlanError(
            f"{uri} is in LLaVA's format: its captions are answers in conversations; take the first answers with "
            f"--caption_column '{_LLAVA}'"
        )
    return PlannedListing(form, first.offers, _hints(uri, first, Fence(posixpath.dirname(uri), options.allow_uri)))


def _hints(uri: str, first: Beginning, fence: Fence) -> list[str]:
    lines = []
    if _is_llava(first):
        lines.append(
            f"warning: {uri}: the answers in conversations are not read as captions; --caption_column '{_LLAVA}' takes "
            "the first ones"
        )
    if "image" not in first.offers and first.pictures:
        lines.append(
            f"warning: {uri}: the pictures in the column {first.pictures[0]} are not read; --image_column "
            f"'{first.pictures[0]}' takes them"
        )
    elif "image" not in first.offers:
        lines.append(f"note: {uri} names no images, so its captions alone are embedded; --image_column NAME names some")
    refused = [refusal for text in first.uris if (refusal := _refusal(fence, text))]
    if refused and len(refused) == len(first.uris):
        lines.append(f"warning: {uri}: the first images cannot be fetched: {refused[0]}")
    return lines


def _is_llava(first: Beginning) -> bool:
    return "conversations" in first.listed and "caption" not in first.offers


def _no_columns(uri: str, form: ListingFormat, first: Beginning) -> str:
    names = ", ".join(first.names) or "none"
    if form.kind == "delimited":
        names += f"; separated by {form.separator_name}"
    pictures = f"; {first.pictures[0]} holds pictures" if first.pictures else ""
    return (
        f"{uri} has no column of URIs or of captions (columns: {names}){pictures}; name one with --image_column or "
        f"--caption_column{_FORMS.get(form.kind, '')}"
    )


def _refusal(fence: Fence, uri: str) -> FenceError | None:
    try:
        if not is_inline(uri):
            resolve(uri, fence)
    except FenceError as error:
        return error
    return None


def _inspect(uri: str, form: ListingFormat, options: ReaderOptions) -> Beginning:
    """Look at the first rows of a listing.

    Raises:
        ColumnError: if the captions are lists and no index was given.
    """
    rows = []
    for record in _first_records(uri, form):
        with contextlib.suppress(ValueError, RecursionError):  # such a row is rejected when it is read
            rows.append({name: _beginning(value) for name, value in record.fields().items()})
    names = list(dict.fromkeys(name for row in rows for name in row)) if form.names is None else form.names
    columns = listing_columns(tuple(names), options)
    caption = columns.caption
    if caption and columns.caption_index is None and options.captions == "first":
        if any(isinstance(json_field(row, caption), list) for row in rows):
            raise several_captions(caption)
    wanted = (("image", columns.uri), ("caption", caption))
    offers = [modality for modality, name in wanted if name and outer_field(names, name) in names]
    found = [json_field(row, columns.uri) for row in rows if columns.uri]
    uris = [text.strip() for text in found if isinstance(text, str) and text.strip()]
    pictures = [
        path
        for name in names
        if name != columns.uri and (path := next((p for row in rows if (p := _picture(name, row.get(name)))), None))
    ]
    listed = [name for name in names if any(_lists_objects(row.get(name)) for row in rows)]
    return Beginning(list(names), offers, uris, pictures, listed)


def _first_records(uri: str, form: ListingFormat) -> Iterator[Record]:
    num_bytes = 0
    for record in itertools.islice(read_records(uri, form), _LOOKED_AT):
        yield record
        num_bytes += len(record.text or b"")
        if num_bytes > _LOOKED_AT_BYTES and form.max_record_bytes > MAX_RECORD_BYTES:
            return  # rows that hold pictures


def _lists_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _beginning(value: Any) -> Any:
    """Return a value, or the beginning of a long text, so that a thousand pictures are not held."""
    if isinstance(value, str):
        return value[:_KEPT]
    return [_beginning(entry) for entry in value[:_KEPT]] if isinstance(value, list) else value


def _picture(name: str, value: Any) -> str | None:
    """Return the path of the picture that a value is or lists first; None if it is none."""
    if isinstance(value, list):
        name, value = f"{name}[0]", next(iter(value), None)
    return name if isinstance(value, str) and is_picture(value.strip()) else None
