"""Say which columns of Parquet files were taken for pictures, and which look like pictures and were not taken."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from clip_transforms.shards.column_types import holds_bytes, is_short, path_of_picture
from clip_transforms.shards.parquet_columns import IMAGE_COLUMNS, NAMED, places_of_pictures, texts_in_bytes
from clip_transforms.shards.parquet_files import ParquetFiles
from clip_transforms.shards.places import type_at
from clip_transforms.shards.unit import ReaderOptions


def parquet_remarks(found: ParquetFiles, options: ReaderOptions) -> list[str]:
    """Return lines about columns that were taken for their bytes, or that look like pictures and were not taken."""
    if options.input_format == "listing" or options.image_column:
        return []
    lines = []
    if found.shadowed:
        lines.append(
            f"warning: {_and_more([file.uri for file in found.shadowed])}: it has the name of a tar and holds images "
            "too, and is not read; if they are other samples, rename it, or give --input_format parquet to read "
            "Parquet alone"
        )
    # A column with a usual name was recognised by its siblings, and has no values itself.
    for place in sorted(place for place in set(found.recognised.values()) if place.lower() not in IMAGE_COLUMNS):
        uris = sorted(uri for uri, recognised in found.recognised.items() if recognised == place)
        lines.append(f"note: no column of {_and_more(uris)} has a usual name for images; {place} holds pictures")
    for file, _, place in (column.rpartition("/") for column in found.further):
        lines.append(
            f"note: {file}: {place} holds pictures too, which are not read; --image_column '{place}' takes them instead"
        )
    for say in (_no_pictures, _unreadable_types):
        said = [(file.uri, text) for file, schema in found.listings if (text := say(schema, options))]
        if said:
            lines.append(f"note: {_and_more([uri for uri, _ in said])}: {said[0][1]}")
    return lines


def _no_pictures(schema: pa.Schema, options: ReaderOptions) -> str:
    """Say which columns could hold pictures by their types and do not; empty if none could."""
    types = [(place, type_at(schema, place) or pa.null()) for place in places_of_pictures(schema)]
    texts = texts_in_bytes(schema, options)
    names = [place for place, type_ in types if place not in texts and (holds_bytes(type_) or path_of_picture(type_))]
    if not names:
        return ""
    return (
        f"the first values of {' and '.join(names[:NAMED])} are no pictures, so none are read; --image_column "
        f"'{names[0]}' takes them as images all the same"
    )


def _unreadable_types(schema: pa.Schema, options: ReaderOptions) -> str:
    """Say which column holds bytes, or has a name for images, and has a type that is not read; empty if none does."""
    for field in schema:
        is_meant = holds_bytes(field.type) or (field.name.lower() in IMAGE_COLUMNS and pa.types.is_nested(field.type))
        if is_meant and not places_of_pictures(pa.schema([field])) and not is_short(field.type):
            return f"the column {field.name} is {field.type}, which is not read as a picture"
    return ""


def _and_more(uris: Iterable[str]) -> str:
    first, *others = uris
    return first + (f" and {len(others):,} more" if others else "")
