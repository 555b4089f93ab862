"""Describe in words what was found in an input, so that the user sees a wrong guess before the run is over."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.shards.beside import caption_extensions, without_picture
from clip_transforms.shards.chosen import Chosen
from clip_transforms.shards.unit import ReaderOptions, with_cure
from clip_transforms.storage import FileInfo

_PLURAL = re.compile(r"^(?:JSON files|linked folders|listings|pictures|tars|texts|TFRecords)\b")


def describe(chosen: Chosen, options: ReaderOptions) -> str:
    """Return one line that says what was taken from an input and what was not.

    Args:
        chosen: what was found in it.
        options: names the extension of the captions.
    """
    kinds, parquet, below = chosen.kinds, chosen.parquet, chosen.source.below
    tars, tfrecords, images, listings = chosen.tars, chosen.tfrecords, chosen.images, chosen.listings
    captions = {f".{extension}" for extension in caption_extensions(options)} if images else set()
    left = Counter(
        {kind: len(files) for kind, files in kinds.items() if kind.startswith((".", "no ")) and kind not in captions}
    )
    took = [
        counted(len(files), one, many)
        for files, one, many in (
            (tars, "webdataset shard", "webdataset shards"),
            (tfrecords, "TFRecord shard", "TFRecord shards"),
            (parquet.images, "Parquet shard with images", "Parquet shards with images"),
            (listings, "listing", "listings"),
            (parquet.broken, "Parquet file that cannot be read", "Parquet files that cannot be read"),
        )
        if files
    ]
    if images:
        took.append(f"a folder of {counted(len(images), 'picture')}")
    else:
        left["pictures" if tars or tfrecords or parquet.images else "pictures (--input_format)"] = len(kinds["image"])
    taken = {file.uri for file, _ in (*listings, *parquet.images, *parquet.broken)}
    passed = [file for file in kinds["parquet"] if file.uri not in taken]
    left["sidecar Parquet"] = len(parquet.sidecars)
    left["Parquet that cannot be read"] = len(parquet.unread)
    left["Parquet"] = len(passed) - len(parquet.sidecars) - len(parquet.unread)
    left["listings (--input_format listing)"] = sum(file.uri not in taken for file in kinds["listing"])
    left["tars"] = len(kinds["tar"]) - len(tars)
    left["TFRecords"] = len(kinds["tfrecord"]) - len(tfrecords)
    left["linked folders that are read under another path"] = len(below.passed_over)
    left["pipes, sockets and devices"] = len(below.special)
    left["_stats.json"] = len(kinds["statistics"])
    stray = [file for file in without_picture(kinds["json"], images) if file.uri not in taken]
    left["JSON files without a picture" if images else "JSON files"] = len(stray)
    if images:
        left["texts without a picture"] = len(without_picture(kinds["caption"], images))
    ignored = ", ".join(_counted(count, with_cure(kind)) for kind, count in sorted(left.items()) if count)
    line = f"{chosen.source.name}: {' and '.join(took) or 'nothing to read'}" + (
        f"; not read: {ignored}" if ignored else ""
    )
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


def _counted(number: int, kind: str) -> str:
    """Return `1 picture`, `2 pictures`; a kind is in the plural if its files can be counted."""
    if number == 1:
        kind = _PLURAL.sub(lambda word: word[0][:-1], kind).replace(" that are ", " that is ")
    return f"{number:,} {kind}"


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
