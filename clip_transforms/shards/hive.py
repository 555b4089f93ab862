"""Take values from the names of folders, as Hive and Spark write them: `split=train/lang=en/part-0.parquet`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from clip_transforms.shards.unit import ReaderOptions

_NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_values(uri: str) -> dict[str, str | None]:
    """Return the values that the folders above a file give, by name. An inner folder goes before an outer one."""
    values = {}
    for segment in posixpath.dirname(uri).split("/"):
        name, separator, value = segment.partition("=")
        if name and separator:
            values[unquote(name)] = None if value == _NULL else unquote(value)
    return values


def names_in(uris: Iterable[str]) -> set[str]:
    """Return the names of all values that the folders above some files give."""
    folders = {posixpath.dirname(uri) for uri in uris}
    return {name for folder in folders if "=" in folder for name in folder_values(f"{folder}/")}


def fill_in(sample: dict[str, Any], values: Mapping[str, str | None], options: ReaderOptions) -> dict[str, Any]:
    """Return a sample with the folders' values for those of the user's columns that it has no value for."""
    for column in options.columns:
        if sample.get(column.name) is None and column.field in values:
            sample[column.name] = values[column.field]
    return sample


def fill_in_all(samples: Iterable[dict[str, Any]], uri: str, options: ReaderOptions) -> Iterator[dict[str, Any]]:
    """Do as `fill_in` for all samples of one shard."""
    values = folder_values(uri)
    return (fill_in(sample, values, options) for sample in samples)
