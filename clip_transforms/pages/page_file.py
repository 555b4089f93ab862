"""The file of a page: where it may be written."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from clip_transforms import storage
from clip_transforms.parts.manifest import OutputError
from clip_transforms.parts.shard_name import folder_around

_OURS = b'<meta name="generator" content="clip-transforms">'
_BEGINNING = 2_000  # bytes of a page in which _OURS must stand


def is_page(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a page of ours."""
    return _OURS in start[:_BEGINNING]


def check_page(place: storage.Place, flag: str, dataset: str, shards: Iterable[str], overwrite: bool) -> str:
    """Check a place for a page, and return its URI. A page of ours that is there will be made anew.

    Args:
        place: the place; a text or a Path.
        flag: the flag that gave it, for the messages.
        dataset: URI of the dataset.
        shards: URIs of the shards that it was made from.
        overwrite: whether a file of another kind may be replaced.
    Raises:
        OutputError: if it lies in the dataset or in a folder that was embedded, is a folder, or is a file of another
            kind that may not be replaced.
        StorageError: if its folder cannot be written to.
    """
    uri = storage.normalise(storage.as_uri(place, flag.strip("-")))
    what, folder = "what is embedded,", folder_around(uri, shards)
    if f"{uri}/".startswith(f"{dataset}/"):
        what, folder = "the dataset", dataset
    if folder:
        raise OutputError(f"{flag} {uri} lies in {what} {folder}; give a file outside of it")
    if storage.is_folder(uri):
        raise OutputError(f"{flag} {uri} is a folder, but it must be an HTML file; give a name that ends in .html")
    if not uri.lower().endswith((".html", ".htm")):
        raise OutputError(f"{flag} {uri} must end in .html; give {uri}.html")
    if not overwrite and storage.exists(uri) and not is_page(storage.read_bytes(uri, _BEGINNING)):
        raise OutputError(f"{flag} {uri} is a file that this program did not write; remove it, or give another name")
    storage.check_writable(posixpath.dirname(uri), f"{flag} {uri}")
    return uri
