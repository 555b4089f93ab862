"""Find the pictures of a folder again by their keys, which are their paths below the folder."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from clip_transforms import storage
from clip_transforms.shards.batches import read_up_to, text_of
from clip_transforms.shards.inputs import root_of
from clip_transforms.shards.unit import ReaderOptions, part_name
from clip_transforms.shards.wanted import GONE, Picture, Wanted, checked

_NAMED = re.compile(r"/\(\d+ named pictures, [0-9a-f]{8}\)$")  # as `inputs` names files that were given one by one
_FOREIGN = "�"  # stands in a key for bytes that are not UTF-8
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def read_files(shard: str, wanted: Sequence[Wanted], options: ReaderOptions) -> Iterator[Picture]:
    """Read the pictures of one unit of a folder.

    Args:
        shard: `<folder>#<the path it starts after>`; instead of the folder also a glob, or the name of named pictures.
        wanted: the rows; their keys name the files.
        options: the limit of a picture.
    Yields:
        A Picture for each row, as `wanted.checked` returns it.
    """
    roots = _roots(shard)
    for one in wanted:
        read = (checked(_read(uri, one, options.max_image_bytes), one) for uri in _places(roots, one.key))
        best = Picture(one.row, None, GONE)
        for picture in read:
            best = picture if best.lost == GONE else best
            if not picture.lost:
                best = picture
                break
        yield best


def file_of(part: str, shard: str, key: str) -> str:
    """Return the URI of the file of a picture; empty if its source is no folder, or if it is gone.

    Args:
        part: name of the part that has the row.
        shard: its shard.
        key: the key of the row.
    """
    places = _places(_roots(shard), key) if part == part_name(shard, shard) else ()
    return next((uri for uri in places if not storage.is_local(uri) or storage.exists(uri)), "")


def _roots(shard: str) -> list[str]:
    """Return the folders that the keys may be relative to; mostly one. Names of folders and files may hold a # too."""
    sources = [shard[:place] for place, character in enumerate(shard) if character == "#"]
    sources = [_NAMED.sub("", source) for source in sources]
    roots = [[source, root_of(source)] if any(c in source for c in "*?[") else [source] for source in sources]
    return list(dict.fromkeys(root for found in roots for root in found))


def _read(uri: str, wanted: Wanted, limit: int) -> Picture:
    try:
        with storage.open_input(uri) as file:
            data = read_up_to(file, limit + 1)
        return Picture(wanted.row, data if len(data) <= limit else None)
    except OSError as error:
        if storage.is_of_the_machine(error):
            raise
        gone = isinstance(error, FileNotFoundError) or error.errno in _ABSENT
        return Picture(wanted.row, None, GONE if gone else "unreadable")


def _places(roots: Sequence[str], key: str) -> Iterator[str]:
    """Yield the URIs that a key may stand for. A key never climbs."""
    for root in roots if not {"..", "."} & set(key.split("/")) else ():
        yield storage.join(root, key)
        if _FOREIGN in key and storage.is_folder(root):
            files = (file.uri for file in storage.list_below(root))
            yield from (uri for uri in files if text_of(uri.removeprefix(root).lstrip("/")) == key)
