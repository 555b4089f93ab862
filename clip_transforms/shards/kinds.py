"""Tell what files are by their names."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence

from clip_transforms.shards.unit import (
    CAPTION_EXTENSIONS,
    COMPRESSIONS,
    IMAGE_EXTENSIONS,
    LISTING_EXTENSIONS,
)
from clip_transforms.storage import FileInfo

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_PARQUET = ("parquet", "parq", "pq")
_SHARD_SUFFIXES = (*_TAR_SUFFIXES, *(f".{extension}" for extension in _PARQUET))
_TFRECORD = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?$")
_COMPRESSED_LISTINGS = tuple(f".{name}{end}" for name in (*LISTING_EXTENSIONS, "json") for end in COMPRESSIONS)


def kind_of(uri: str) -> str:
    """Return the kind of a file by its name.

    It is `tar`, `tfrecord`, `image`, `listing`, `parquet`, `caption`, `json`, `statistics`, or else the extension.
    """
    lower = posixpath.basename(uri).lower()
    extension = lower.rpartition(".")[2] if "." in lower else ""
    if lower.endswith(_TAR_SUFFIXES):
        return "tar"
    if _TFRECORD.search(lower):
        return "tfrecord"
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in LISTING_EXTENSIONS or lower.endswith(_COMPRESSED_LISTINGS):
        return "listing"
    if lower.endswith("_stats.json"):
        return "statistics"
    if extension in CAPTION_EXTENSIONS:
        return "caption"
    if extension in _PARQUET:
        return "parquet"
    return "json" if extension == "json" else f".{extension}" if "." in lower else "no extension"


def by_kind(files: Sequence[FileInfo]) -> dict[str, list[FileInfo]]:
    """Sort files by the kind that their names tell."""
    kinds: dict[str, list[FileInfo]] = defaultdict(list)
    for file in files:
        kinds[kind_of(file.uri)].append(file)
    return kinds


def stem(uri: str) -> str:
    """Return the URI of a shard without its extension; its sidecar has the same stem."""
    lower = uri.lower()
    for suffix in _SHARD_SUFFIXES:
        if lower.endswith(suffix):
            return uri[: -len(suffix)]
    found = _TFRECORD.search(lower)
    return uri[: found.start()] if found else uri
