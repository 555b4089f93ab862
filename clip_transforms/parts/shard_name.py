"""The short name of a shard, for a table that a person reads, and the source that it is a piece of."""

from __future__ import annotations

from collections.abc import Iterable

from clip_transforms import storage


def shard_name(shard: str) -> str:
    """Return the name of a shard without the folders above it: `a.tar`, or `photos#cats/1000.jpg` for a folder's unit.

    A folder's unit is called `<folder>#<path>`, so the end of its name alone would look like a picture.

    Args:
        shard: URI of the shard, as in the column of this name.
    """
    before, mark, after = shard.partition("#")
    return before.rstrip("/").rpartition("/")[2] + mark + after


def sources_of(shards: Iterable[str]) -> dict[str, str]:
    """Map each shard to its source: a folder's unit, `<folder>#<path>`, to the folder, any other shard to itself.

    Names of files may hold a # too. A folder is recognised by its first unit, whose path is empty.
    """
    shards = list(shards)
    folders = {shard[:-1] for shard in shards if shard.endswith("#")}

    def source(shard: str) -> str:
        places = (place for place in range(len(shard) - 1, -1, -1) if shard[place] == "#")
        return next((shard[:place] for place in places if shard[:place] in folders), shard)

    return {shard: source(shard) if "#" in shard else shard for shard in shards}


def folder_around(uri: str, shards: Iterable[str]) -> str:
    """Return the embedded folder that a URI lies in; empty if it lies in none.

    A shard with a # in its name is a folder's unit, unless there is a file of that name.

    Args:
        uri: the URI, without a slash at the end.
        shards: those of a dataset. It may have any units of a folder.
    """
    for shard in shards:
        for place in (place for place, character in enumerate(shard) if character == "#"):
            folder = shard[:place].rstrip("/")
            if f"{uri}/".startswith(f"{folder}/") and not storage.exists(shard):
                return folder
    return ""
