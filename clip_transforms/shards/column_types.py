"""Tell by its Arrow type whether a column holds text, bytes or pictures."""

from __future__ import annotations

import pyarrow as pa

from clip_transforms.shards.places import is_list

_SMALLEST_PICTURE = 64  # bytes; a column of shorter ones holds hashes or ids


def is_text(type_: pa.DataType) -> bool:
    """Return whether a type is a text, and not a dictionary of texts."""
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary, or the type itself."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def is_text_or_bytes(type_: pa.DataType) -> bool:
    """Return whether a type may be text: Impala, Hive and old versions of Spark write text as bytes."""
    plain = plain_type(type_)
    return is_text(plain) or (_is_binary(plain) and not pa.types.is_fixed_size_binary(plain))


def is_short(type_: pa.DataType) -> bool:
    """Return whether a type is binary of a fixed length that no picture has."""
    return pa.types.is_fixed_size_binary(type_) and type_.byte_width < _SMALLEST_PICTURE


def is_picture(type_: pa.DataType) -> bool:
    """Return whether a type may be an encoded picture: bytes, or a struct with `bytes` or with the `path` of a file."""
    if pa.types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return path_of_picture(type_) is not None or (place >= 0 and is_picture(type_.field(place).type))
    return _is_binary(plain_type(type_)) or _is_list_of_bytes(type_)


def may_be_pictures(type_: pa.DataType) -> bool:
    """Return whether a column of this type is one of pictures by its name, or if its siblings' are: it may be empty."""
    return is_picture(type_) or pa.types.is_null(type_)


def path_of_picture(type_: pa.DataType) -> str | None:
    """Return the name of the field that holds a picture's path where its bytes are null; None if there is none."""
    if not pa.types.is_struct(type_):
        return None
    place, path = type_.get_field_index("bytes"), type_.get_field_index("path")
    inner = pa.null() if place < 0 else type_.field(place).type
    is_usable = pa.types.is_null(inner) or (not pa.types.is_struct(inner) and is_picture(inner))
    return "path" if is_usable and path >= 0 and is_text(plain_type(type_.field(path).type)) else None


def holds_bytes(type_: pa.DataType) -> bool:
    """Return whether a type is binary or contains a binary type at any depth."""
    plain = plain_type(type_)
    if _is_binary(plain):
        return True
    return pa.types.is_nested(plain) and any(holds_bytes(plain.field(i).type) for i in range(plain.num_fields))


def _is_binary(type_: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(type_) for check in checks)


def _is_list_of_bytes(type_: pa.DataType) -> bool:
    return is_list(type_) and type_.value_type in (pa.uint8(), pa.int8())
