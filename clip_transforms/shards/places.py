"""Name places inside nested columns: `sample.caption` is a field of a struct, `images[0]` the first entry of a list.

A column or field whose own name has dots or brackets is found by that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

_INDEX = re.compile(r"\[(\d{1,9})\]")


def type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type at a place; None if there is no such place."""
    if name in schema.names:
        return schema.field(name).type
    found = _resolve(pa.struct(list(schema)), f".{name}")
    return None if found is None else found[1]


def column_of(schema: pa.Schema, name: str) -> str:
    """Return the column that a place lies in."""
    if name in schema.names:
        return name
    found = _resolve(pa.struct(list(schema)), f".{name}")
    if found is None:
        raise KeyError(name)
    return schema.names[found[0][0][1]]


def values_at(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the values at a place, one per row; null where a struct on the way is null or a list is too short."""
    if name in batch.schema.names:
        return batch.column(name)
    found = _resolve(pa.struct(list(batch.schema)), f".{name}")
    if found is None:
        raise KeyError(name)
    (_, column), *steps = found[0]
    array = batch.column(column)
    for is_list, place in steps:
        array = _entries(array, place) if is_list else pc.struct_field(array, [place])
    return array


def is_in_list(schema: pa.Schema, name: str) -> bool:
    """Return whether a place is an entry of a list, or lies in one."""
    found = _resolve(pa.struct(list(schema)), f".{name}")
    return found is not None and any(in_list for in_list, _ in found[0])


def paths_of(schema: pa.Schema) -> Iterator[str]:
    """Return the names of all columns and of all places in their structs; a list's entries are named `[]`."""
    return (place for field in schema for place, _ in places_below(field.name, field.type, "[]"))


def is_among(name: str, paths: Collection[str]) -> bool:
    """Return whether a place is one of those that `paths_of` names."""
    return name in paths or _INDEX.sub("[]", name) in paths


def is_list(type_: pa.DataType) -> bool:
    """Return whether a type is a list whose entries an index can choose from."""
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _resolve(type_: pa.DataType, rest: str) -> tuple[list[tuple[bool, int]], pa.DataType] | None:
    """Return the steps to a place, each (whether it is into a list, index of the entry or field), and its type."""
    if not rest:
        return [], type_
    if pa.types.is_struct(type_) and rest.startswith("."):
        # Longest names first: a name with dots of its own goes before a path through structs.
        for place in sorted(range(type_.num_fields), key=lambda place: -len(type_.field(place).name)):
            field = type_.field(place)
            after = rest[1 + len(field.name) :]
            if rest[1:].startswith(field.name) and (not after or after[0] in ".["):
                found = _resolve(field.type, after)
                if found is not None:
                    return [(False, place), *found[0]], found[1]
    index = _INDEX.match(rest) if is_list(type_) else None
    found = _resolve(type_.value_type, rest[index.end() :]) if index else None
    return None if index is None or found is None else ([(True, int(index[1])), *found[0]], found[1])


def _entries(array: pa.Array, place: int) -> pa.Array:
    """Return entry number `place` of each list. `pc.list_element` raises if one list is shorter."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        if place >= size:
            return pa.nulls(len(array), array.type.value_type)
        starts = pa.array(range(array.offset * size, (array.offset + len(array)) * size, size), pa.int64())
        has = array.is_valid()
    else:
        starts = array.offsets[: len(array)].cast(pa.int64())
        has = pc.fill_null(pc.greater(pc.list_value_length(array), place), False)
    return array.values.take(pc.if_else(has, pc.add(starts, place), None))


def places_below(
    name: str, type_: pa.DataType, entry: str, is_whole: Callable[[pa.DataType], bool] = lambda type_: False
) -> Iterator[tuple[str, pa.DataType]]:
    """Yield a place and all places inside of it, each with its type.

    Args:
        name: name of the place.
        type_: its type.
        entry: how to name the entries of a list, `[]` or `[0]`.
        is_whole: whether not to look into a type.
    """
    yield name, type_
    if pa.types.is_struct(type_) and not is_whole(type_):
        for place in range(type_.num_fields):
            yield from places_below(f"{name}.{type_.field(place).name}", type_.field(place).type, entry, is_whole)
    elif is_list(type_) and not is_whole(type_):
        yield from places_below(f"{name}{entry}", type_.value_type, entry, is_whole)
