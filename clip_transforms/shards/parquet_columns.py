"""Find the columns of images, captions and keys: by name and type, or as the flags say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from clip_transforms.shards.unit import IMAGE_EXTENSIONS, ReaderOptions

IMAGE_COLUMNS = ("image", "image_bytes", "bytes", *IMAGE_EXTENSIONS)
URI_COLUMNS = ("image", "uri", "url", "path", "file", "filename", "file_name", "filepath")
CAPTION_COLUMNS = ("caption", "text", "txt")
LISTING_CAPTION_COLUMNS = (*CAPTION_COLUMNS, "title")  # open_clip's training takes `title`
KEY_COLUMNS = ("key", "uid", "__key__")
_INDEXED = re.compile(r"(.+)\[(\d+)\]")


class ColumnError(ValueError):
    """A column was asked for that does not exist or cannot be used; the message is one sentence."""


def image_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the name of the column with image bytes, binary or a struct with binary `bytes`; None if there is none.

    Raises:
        ColumnError: if `--image_column` names a column that is neither that nor text, which may be URIs.
    """
    if options.image_column:
        if options.image_column not in schema.names:
            raise _missing("image_column", options.image_column, schema.names)
        type_ = schema.field(options.image_column).type
        if _is_text(_plain(type_)):
            return None
        if not holds_bytes(type_):
            raise ColumnError(
                f"--image_column {options.image_column} is {type_}, but it must be binary, a struct with binary bytes, "
                "or text that holds URIs"
            )
        return options.image_column
    candidates = (name for usual in IMAGE_COLUMNS if (name := find(schema.names, [usual])))
    return next((name for name in candidates if holds_bytes(schema.field(name).type)), None)


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
    if asked and asked not in schema.names:
        raise _missing("caption_column", asked, schema.names)
    # A number or a struct that only has a caption's name is passed over. A column that was asked for must be usable.
    name = asked or find([f.name for f in schema if not _is_other(f.type)], CAPTION_COLUMNS)
    if name is None:
        return None
    type_ = schema.field(name).type
    listed = _is_list(type_)
    if listed and index is None and options.captions == "first":
        raise several_captions(name)
    if not listed and index is not None:
        raise ColumnError(f"--caption_column {options.caption_column}: {name} is {type_}, not a list; omit [{index}]")
    text = type_.value_type if listed else _plain(type_)
    if not (_is_text(text) or pa.types.is_null(text)):
        raise ColumnError(f"the caption column {name} is {type_}, but it must be text; choose with --caption_column")
    return name, index


def several_captions(name: str) -> ColumnError:
    """Return the error for a column of lists for which no index was given."""
    return ColumnError(
        f"the column {name} lists several captions a row; choose one with --caption_column '{name}[0]', or take all of "
        "them with --captions all"
    )


def asked_caption(names: Sequence[str], options: ReaderOptions) -> tuple[str | None, int | None]:
    """Return the column and the index that `--caption_column` names."""
    asked = options.caption_column
    if asked and asked not in names and (match := _INDEXED.fullmatch(asked)):
        return match[1], int(match[2])
    return asked, None


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


def listing_columns(names: Sequence[str], options: ReaderOptions) -> ListingColumns:
    """Return the columns that the flags name, else those with a usual name."""
    caption, index = asked_caption(names, options)
    return ListingColumns(
        options.key_column or find(names, KEY_COLUMNS),
        options.image_column or find(names, URI_COLUMNS),
        caption or find(names, LISTING_CAPTION_COLUMNS),
        index,
    )


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_other(type_: pa.DataType) -> bool:
    """Return whether a type is neither text nor a list nor null."""
    plain = _plain(type_)
    return not (_is_text(plain) or _is_list(plain) or pa.types.is_null(plain))


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def key_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the column of keys; None if the row is the key.

    Raises:
        ColumnError: if `--key_column` names a column that does not exist or is nested.
    """
    if options.key_column and options.key_column not in schema.names:
        raise _missing("key_column", options.key_column, schema.names)
    if options.key_column and pa.types.is_nested(schema.field(options.key_column).type):
        type_ = schema.field(options.key_column).type
        raise ColumnError(f"--key_column {options.key_column} is {type_}, but it must be text, bytes or a number")
    return options.key_column or find([f.name for f in schema if not pa.types.is_nested(f.type)], KEY_COLUMNS)


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


def check_wanted(names: Sequence[str], options: ReaderOptions) -> None:
    """Refuse a column of `--columns` that no shard has.

    Raises:
        ColumnError: naming the column.
    """
    for column in options.columns:
        if column.field not in names:
            raise _missing("columns", column.field, names)


def uri_column(schema: pa.Schema, options: ReaderOptions) -> str | None:
    """Return the column with the URIs of images; None if there is none."""
    texts = [field.name for field in schema if _is_text(_plain(field.type))]
    return options.image_column if options.image_column in texts else find(texts, URI_COLUMNS)


def _missing(flag: str, name: str, names: Sequence[str]) -> ColumnError:
    return ColumnError(f"--{flag} {name} is not a column of the input; its columns are {', '.join(names)}")


def holds_bytes(type_: pa.DataType) -> bool:
    """Return whether a type is binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return place >= 0 and holds_bytes(type_.field(place).type)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def has_bytes(type_: pa.DataType) -> bool:
    """Return whether a type is binary or contains a binary type at any depth."""
    if holds_bytes(type_) or pa.types.is_fixed_size_binary(type_):
        return True
    return pa.types.is_nested(type_) and any(has_bytes(type_.field(i).type) for i in range(type_.num_fields))
