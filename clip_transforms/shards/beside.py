"""Find the captions and JSON files of pictures, and tell pictures without an extension by their first bytes."""

from __future__ import annotations

import concurrent.futures
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from clip_transforms import storage
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS, ReaderOptions
from clip_transforms.storage import FileInfo

_MANY = 100  # from so many pictures of one folder on, listing the folder is quicker than asking for each caption
_THREADS = 16
SNIFFED_BYTES = 64  # `picture_format` needs no more


def stem_of(uri: str) -> str:
    """Return the URI of a file without its extension, if it has one."""
    folder, slash, base = uri.rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0] or base}"


def same_stems(stem: str) -> list[str]:
    """Return the stems that a picture's caption may have: its own, and its other spellings in Unicode."""
    if stem.isascii():
        return [stem]
    return list(dict.fromkeys([stem, *(unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))]))


def without_picture(files: Iterable[FileInfo], images: Iterable[FileInfo]) -> list[FileInfo]:
    """Return those files whose stem is that of no picture, so that they are no picture's captions or metadata."""
    stems = {stem for image in images for stem in same_stems(stem_of(image.uri))}
    return [file for file in files if stem_of(file.uri) not in stems]


def caption_extensions(options: ReaderOptions) -> tuple[str, ...]:
    """Return the extensions of files and members that may hold a caption: the one that was asked for, or the usual."""
    if options.caption_column is None:
        return CAPTION_EXTENSIONS
    asked = options.caption_column.lower().removeprefix(".")
    return () if asked in IMAGE_EXTENSIONS or asked == "json" or "/" in asked else (asked,)


def files_beside(images: Sequence[FileInfo], options: ReaderOptions) -> list[FileInfo]:
    """Find the captions and JSON files of pictures that were named by a glob or one by one.

    No other folder is looked at; a folder is listed, by itself, only where that takes fewer requests.
    """
    by_folder: dict[str, list[FileInfo]] = defaultdict(list)
    for image in images:
        by_folder[posixpath.dirname(image.uri)].append(image)
    found: list[FileInfo] = []
    asked: list[str] = []
    extensions = [spelt for e in (*caption_extensions(options), "json") for spelt in (e, e.upper(), e.title())]
    for folder, of_folder in by_folder.items():
        if len(of_folder) >= _MANY:
            try:
                found += storage.list_folder(folder)
                continue
            except PermissionError:  # one may read a file in a folder that one may not list
                pass
        stems = [stem for image in of_folder for stem in same_stems(stem_of(image.uri))]
        asked += [f"{stem}.{extension}" for stem in stems for extension in extensions]
    return found + storage.infos_of(asked)


def sniff(files: Iterable[FileInfo], all_files: Iterable[FileInfo]) -> set[str]:
    """Tell which files without an extension are pictures.

    Args:
        files: the files without an extension. Markers such as `_SUCCESS` are not opened.
        all_files: all files of the source. A file that one of them is a link to is read under the link's name, as in
            Hugging Face's cache, where links with names lead to nameless files.
    Returns:
        URIs of the files whose first bytes are a picture's.
    """
    asked = [file.uri for file in files if file.size and not posixpath.basename(file.uri).startswith("_")]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = {uri for uri, is_picture in zip(asked, pool.map(_is_picture, asked), strict=True) if is_picture}
    if not found:
        return found
    return found - {os.path.realpath(file.uri) for file in all_files if os.path.islink(file.uri)}


def _is_picture(uri: str) -> bool:
    try:
        return picture_format(storage.read_bytes(uri, SNIFFED_BYTES)) is not None
    except OSError as error:
        if storage.is_of_the_machine(error):
            raise
        return False
