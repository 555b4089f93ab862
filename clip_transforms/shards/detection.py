"""Describe in words what was found in an input, so that the user sees a wrong guess before the run is over."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from clip_transforms import storage
from clip_transforms.parts.counts import counted, counted_kind
from clip_transforms.shards.beside import without_picture
from clip_transforms.shards.chosen import Chosen
from clip_transforms.shards.left_out import left_out
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.storage import FileInfo


def describe(chosen: Chosen, options: ReaderOptions) -> str:
    """Return one line that says what was taken from an input and what was not.

    Args:
        chosen: what was found in it.
        options: names the extension of the captions.
    """
    images, parquet = chosen.images, chosen.parquet
    took = [
        counted(len(files), one, many)
        for files, one, many in (
            (chosen.tars, "webdataset shard", "webdataset shards"),
            (chosen.tfrecords, "TFRecord shard", "TFRecord shards"),
            (parquet.images, "Parquet shard with images", "Parquet shards with images"),
            (chosen.listings, "listing", "listings"),
            (parquet.broken, "Parquet file that cannot be read", "Parquet files that cannot be read"),
        )
        if files
    ]
    took += [f"a folder of {counted(len(images), 'picture')}"] if images else []
    left = ", ".join(counted_kind(len(uris), kind) for kind, uris in left_out(chosen, options).items())
    line = f"{chosen.source.name}: {' and '.join(took) or 'nothing to read'}{f'; not read: {left}' if left else ''}"
    line += f"; left out: {counted(chosen.num_outputs, 'dataset')} of this program" if chosen.num_outputs else ""
    return line + chosen.skipped.describe()


def remarks(chosen: Chosen, options: ReaderOptions) -> list[str]:
    """Return lines about tars that are missing, listings beside pictures, and Delta tables."""
    lines = _missing_tars(chosen.visible, chosen.tars)
    kinds, parquet = chosen.kinds, chosen.parquet
    if chosen.images and options.input_format == "auto" and not kinds["caption"]:
        lines += _unread_listings(
            [*kinds["listing"], *parquet.sidecars, *without_picture(kinds["json"], chosen.images)]
        )
    if parquet.images or parquet.listings:
        lines += _delta_tables(chosen.skipped.folders)
    return lines


def _unread_listings(files: list[FileInfo]) -> list[str]:
    """Return a note if listings lie beside pictures that have no captions in files."""
    if not files:
        return []
    are = "lies" if len(files) == 1 else "lie"
    return [
        f"note: {counted(len(files), 'listing')} ({posixpath.basename(files[0].uri)}{', …' if len(files) > 1 else ''}) "
        f"{are} beside the pictures; if the captions are there, with paths that begin in that folder, --input_format "
        "listing reads them with their pictures"
    ]


def _delta_tables(skipped: Iterable[str]) -> list[str]:
    """Return a warning for each Delta table among the folders, whose log was skipped."""
    return [
        f"warning: {posixpath.dirname(path)} is a Delta table; all of its Parquet files are read, also those with rows "
        "that were deleted or replaced; to embed one version, write it as plain Parquet first"
        for path in sorted(skipped)
        if posixpath.basename(path) == "_delta_log"
    ]


def _missing_tars(visible: list[FileInfo], tars: list[FileInfo]) -> list[str]:
    """Return a warning for each `nshards.txt` of CLIP_benchmark that counts other tars than lie beside it."""
    lines = []
    for file in [file for file in visible if posixpath.basename(file.uri) == "nshards.txt" and file.size < 100]:
        folder = posixpath.dirname(file.uri)
        text = storage.read_bytes(file.uri).strip()
        found = sum(posixpath.dirname(tar.uri) == folder for tar in tars)
        if text.isdigit() and int(text) != found and tars:
            lines.append(f"warning: {file.uri} says {int(text):,} shards, but {found:,} tars lie beside it")
    return lines
