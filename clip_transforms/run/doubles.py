"""Warn of shards that are in a dataset, or in the input, under another name."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.shards.unit import Unit
from schemas.provenance import Footer


def doubles(units: Sequence[Unit], others: Mapping[str, Footer], source_of: Mapping[str, str]) -> list[str]:
    """Return a warning for units that look like one of another shard, by name and size, or by size and time.

    Args:
        units: the units of the input.
        others: part → footer of the parts that are not made from it.
        source_of: shard → its source, which is a file or a folder.
    """
    known: dict[tuple[str, str], str] = {}  # what a unit looks like → its shard
    alike: dict[str, list[tuple[str, str]]] = {"name and size": [], "size and time": []}
    for footer in others.values():
        for _, looks in _looks(footer["shard"], footer["stamp"], source_of):
            known.setdefault(looks, footer["shard"])
    for unit in units:
        for what, looks in _looks(unit.shard, unit.stamp, source_of):
            first = known.setdefault(looks, unit.shard)
            if first != unit.shard and (what == "name and size" or _may_be_one(first, unit.shard)):
                alike[what].append((unit.shard, first))
                break
    return [
        f"warning: {found[0][0]} has the {what} of {found[0][1]} ({counted(len(found), 'such unit')}); if they are the "
        "same file, its rows will be in the dataset twice"
        for what, found in alike.items()
        if found
    ]


def _looks(shard: str, stamp: str, source_of: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield what a unit has in common with the same file elsewhere: its name and size, and its size and time.

    The stamp of a folder or a listing is a hash, and has neither.
    """
    yield "name and size", (posixpath.basename(source_of[shard]), stamp.partition("-")[0])
    if "-" in stamp:
        yield "size and time", ("", stamp)


def _may_be_one(first: str, second: str) -> bool:
    """Return whether two files of one stamp may be one: links on this machine, or a file that was renamed.

    Two files that were unpacked or copied may have the same size and time by chance. An etag on an object store tells
    the content.
    """
    if not (storage.is_local(first) and storage.is_local(second)):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is gone
        return True
