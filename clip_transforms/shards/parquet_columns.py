"""Find the columns of images, captions and keys: by name and type, or as the flags say."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import pyarrow as pa

from clip_transforms.shards.column_types import (
    holds_bytes,
    is_picture,
    is_short,
    is_text,
    is_text_or_bytes,
    may_be_pictures,
    plain_type,
)
from clip_transforms.shards.places import is_among, is_list, places_below, type_at
from clip_transforms.shards.unit import IMAGE_EXTENSIONS, ReaderOptions

IMAGE_COLUMNS = ("image", "image_bytes", "bytes", *IMAGE_EXTENSIONS)
URI_COLUMNS = ("image", "uri", "url", "path", "file", "filename", "file_name", "filepath")
CAPTION_COLUMNS = ("caption", "text", "txt")
LISTING_CAPTION_COLUMNS = (*CAPTION_COLUMNS, "title")  # open_clip's training takes `title`
NAMED = 5  # number of columns that a sentence names
KEY_COLUMNS = ("key", "uid", "__key__")
CAPTION_OF_JSON = "json.caption"
_INDEXED = re.compile(r"(.+)\[(\d+)\]")


class ColumnError(ValueError):
    """A column was asked for that does not exist or cannot be used; the message is one sentence."""


def image_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the place of the image bytes, whose type `is_picture`; None if no place is named and no column is usual.

    Raises:
        ColumnError: if `--image_column` names a place that is neither a picture nor text, which may be URIs.
    """
    if options.image_column:
        type_ = type_at(schema, options.image_column)
        if type_ is None:
            raise _missing("image_column", options.image_column, schema.names)
        if is_text(plain_type(type_)):
            return None
        if is_list(type_) and places_of_pictures(pa.schema([pa.field("x", type_)])) and not is_picture(type_):
            raise several_pictures(options.image_column)
        if not may_be_pictures(type_):
            raise ColumnError(
                f"--image_column {options.image_column} is {type_}, but it must be binary, a struct with binary bytes "
                "or a path, or text that holds URIs"
            )
        return options.image_column
    candidates = (name for usual in IMAGE_COLUMNS if (name := find(schema.names, [usual])))
    return next((name for name in candidates if is_picture(schema.field(name).type)), None)


def several_pictures(name: str) -> ColumnError:
    """Return the error for a column of lists of pictures for which no index was given."""
    return ColumnError(f"the column {name} lists several pictures a row; choose one: --image_column '{name}[0]'")


def places_of_pictures(schema: pa.Schema) -> list[str]:
    """Return the places that could hold pictures by their types, the first entry of a list among them."""
    found = (place for field in schema for place in places_below(field.name, field.type, "[0]", is_picture))
    return [name for name, type_ in found if is_picture(type_) and not is_short(type_)]


def find(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the first of the usual names that exists, in any case; an exact match wins."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((name if name in names else lower[name] for name in usual if name in lower), None)


def caption_column(schema: pa.Schema, options: ReaderOptions) -> tuple[str, int | None] | None:
    """Return the column of captions, and the index to take if it holds lists; None if there is no such column.

    Raises:
        ColumnError: if `--caption_column` names a column of another type, or if a column of lists comes without an
            index and without `--captions all`.
    """
    asked, index = asked_caption(schema.names, options)
    if asked and type_at(schema, asked) is None:
        raise _missing("caption_column", asked, schema.names)
    # A number or a struct that only has a caption's name is passed over. A column that was asked for must be usable.
    texts = [f.name for f in schema if not _is_other(f.type)]
    image = image_column(schema, options)
    in_bytes = [f.name for f in schema if is_text_or_bytes(f.type) and f.name != image]
    name = asked or find(texts, CAPTION_COLUMNS) or find(in_bytes, CAPTION_COLUMNS) or _caption_of_json(schema)
    if name is None:
        return None
    type_ = type_at(schema, name) or pa.null()
    listed = is_list(type_)
    if listed and index is None and options.captions == "first" and is_text_or_bytes(type_.value_type):
        raise several_captions(name)
    if not listed and index is not None:
        raise ColumnError(f"--caption_column {options.caption_column}: {name} is {type_}, not a list; omit [{index}]")
    text = type_.value_type if listed else type_
    if not (is_text_or_bytes(text) or pa.types.is_null(text)) or name == image:
        inner = next((place for place, t in places_below(name, type_, "[0]") if is_text(plain_type(t))), "")
        choice = f" '{inner}', which is a text inside it" if inner and inner != name else ""
        raise ColumnError(
            f"the caption column {name} is {type_}, but it must be text; choose with --caption_column{choice}"
        )
    return name, index


def places_of_texts(schema: pa.Schema) -> list[str]:
    """Return the places of texts, the first entry of a list among them: those that --caption_column may name."""
    found = (place for field in schema for place in places_below(field.name, field.type, "[0]"))
    return [name for name, type_ in found if is_text(plain_type(type_))]


def several_captions(name: str) -> ColumnError:
    """Return the error for a column of lists for which no index was given."""
    return ColumnError(
        f"the column {name} lists several captions a row; choose one with --caption_column '{name}[0]', or take all of "
        "them with --captions all"
    )


def _caption_of_json(schema: pa.Schema) -> str | None:
    """Return the caption in the JSON of a webdataset that was written as Parquet."""
    type_ = type_at(schema, CAPTION_OF_JSON)
    return None if type_ is None or _is_other(type_) else CAPTION_OF_JSON


def asked_caption(names: Collection[str], options: ReaderOptions) -> tuple[str | None, int | None]:
    """Return the place that `--caption_column` names, and the index if it names an entry of a list there."""
    asked = options.caption_column
    match = _INDEXED.fullmatch(asked) if asked and asked not in names else None
    return (match[1], int(match[2])) if match else (asked, None)


def texts_in_bytes(schema: pa.Schema, options: ReaderOptions) -> frozenset[str]:
    """Return the columns of a Parquet listing whose bytes are texts: those that are used and hold no pictures."""
    columns = listing_columns(tuple(f.name for f in schema if not is_text(plain_type(f.type))), options)
    asked = {options.image_column, options.key_column, columns.caption if options.caption_column else None}
    return frozenset(
        field.name
        for field in schema
        if is_text_or_bytes(field.type)
        and not is_text(plain_type(field.type))
        and field.name in columns[:3]
        and (field.name in asked or field.name.lower() not in IMAGE_COLUMNS)
    )


class ListingColumns(NamedTuple):
    """The columns of a listing; None where it has none.

    Attributes:
        key: the column of keys.
        uri: the column of the images' URIs.
        caption: the column of captions.
        caption_index: the place in a list of several captions.
    """

    key: str | None
    uri: str | None
    caption: str | None
    caption_index: int | None


@functools.lru_cache(maxsize=256)  # rows of a listing mostly have the same fields
def listing_columns(names: tuple[str, ...], options: ReaderOptions) -> ListingColumns:
    """Return the columns that the flags name, else those with a usual name."""
    caption, index = asked_caption(names, options)
    return ListingColumns(
        options.key_column or find(names, KEY_COLUMNS),
        options.image_column or find(names, URI_COLUMNS),
        caption or find(names, LISTING_CAPTION_COLUMNS),
        index,
    )


def _is_other(type_: pa.DataType) -> bool:
    """Return whether a type is neither text nor a list nor null."""
    plain = plain_type(type_)
    return not (is_text(plain) or is_list(plain) or pa.types.is_null(plain))


def key_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the place of the keys; None if the row is the key.

    Raises:
        ColumnError: if `--key_column` names a place that does not exist or is nested.
    """
    if not options.key_column:
        return find([f.name for f in schema if not pa.types.is_nested(f.type)], KEY_COLUMNS)
    type_ = type_at(schema, options.key_column)
    if type_ is None:
        raise _missing("key_column", options.key_column, schema.names)
    if pa.types.is_nested(type_):
        raise ColumnError(f"--key_column {options.key_column} is {type_}, but it must be text, bytes or a number")
    return options.key_column


def check_columns(schema: pa.Schema, options: ReaderOptions) -> None:
    """Refuse columns that the reader cannot use. Columns of `--columns` may be missing here and exist in other files.

    Raises:
        ColumnError: naming the column.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ColumnError(f"the Parquet file has two columns called {twice[0]}; write it again with one of each name")
    caption_column(schema, options)
    key_column(schema, options)
    for column in options.columns:
        type_ = type_at(schema, column.field)
        if type_ is not None and pa.types.is_nested(type_) and holds_bytes(type_):
            raise ColumnError(f"--columns {column.field} is {type_}, which holds bytes; name one of its other fields")


def check_wanted(paths: Collection[str], options: ReaderOptions) -> None:
    """Refuse a column of `--columns` that no shard has.

    Args:
        paths: what `places.paths_of` gives for all shards, and names that folders give.
        options: the columns.
    Raises:
        ColumnError: naming the column.
    """
    for column in options.columns:
        if not is_among(column.field, paths):
            raise _missing("columns", column.field, sorted(path for path in paths if not re.search(r"[.\[]", path)))


def uri_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the place of the URIs of images; None if there is none."""
    if options.image_column:
        type_ = type_at(schema, options.image_column)
        if type_ is not None and is_text(plain_type(type_)):
            return options.image_column
    return find([field.name for field in schema if is_text(plain_type(field.type))], URI_COLUMNS)


def _missing(flag: str, name: str, names: Sequence[str]) -> ColumnError:
    return ColumnError(f"--{flag} {name} is not a column of the input; its columns are {', '.join(names)}")
