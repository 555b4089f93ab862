"""The short name of a shard, for a table that a person reads."""

from __future__ import annotations


def shard_name(shard: str) -> str:
    """Return the name of a shard without the folders above it: `a.tar`, or `photos#cats/1000.jpg` for a folder's unit.

    A folder's unit is called `<folder>#<path>`, so the end of its name alone would look like a picture.

    Args:
        shard: URI of the shard, as in the column of this name.
    """
    before, mark, after = shard.partition("#")
    return before.rstrip("/").rpartition("/")[2] + mark + after
