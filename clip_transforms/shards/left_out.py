"""Sort out what lies in an input and is not read: for the line about the input, and for the last lines of a run."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Mapping

from clip_transforms.shards.batches import text_of
from clip_transforms.shards.beside import caption_extensions, stem_of, without_picture
from clip_transforms.shards.chosen import Chosen
from clip_transforms.shards.kinds import kind_of, stem
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, ReaderOptions, with_cure
from clip_transforms.storage import FileInfo

_NO_LOSS = ("_stats.json", "linked folders that are read under another path", "pipes, sockets and devices")
_ASKED_FOR = ("pictures", "tars", "TFRecords", "Parquet", "listings")  # what --input_format chooses from
# They describe the tars beside them.
_OF_CLIP_BENCHMARK = ("nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt")
# Folders of Spark, Delta and Hadoop. Other folders whose names begin with _ may hold somebody's pictures.
_LEFTOVERS = ("_temporary", "_delta_log", "_spark_metadata")


def left_out(chosen: Chosen, options: ReaderOptions) -> dict[str, list[str]]:
    """Return what is not read of a source: kind, in the plural, → URIs."""
    kinds, parquet, images = chosen.kinds, chosen.parquet, chosen.images
    captions = {f".{extension}" for extension in caption_extensions(options)} if images else set()
    left = {kind: files for kind, files in kinds.items() if kind.startswith((".", "no ")) and kind not in captions}
    if not images:
        pictures = [picture for picture in kinds["image"] if picture.uri not in chosen.pictures.named]
        left["pictures" if chosen.shards else "pictures (--input_format)"] = pictures
    read = set(chosen.read)
    apart = {file.uri for file in (*parquet.sidecars, *parquet.unread)}
    left["sidecar Parquet"] = parquet.sidecars
    left["Parquet that cannot be read"] = parquet.unread
    left["Parquet"] = [file for file in kinds["parquet"] if file.uri not in read | apart]
    left["listings (--input_format listing)"] = [file for file in kinds["listing"] if file.uri not in read]
    left["tars"] = kinds["tar"] if not chosen.tars else []
    left["TFRecords"] = kinds["tfrecord"] if not chosen.tfrecords else []
    left["_stats.json"] = kinds["statistics"]
    stray = [file for file in without_picture(kinds["json"], images) if file.uri not in read]
    left["JSON files without a picture" if images else "JSON files"] = stray
    texts = [file for file in kinds["caption"] if posixpath.basename(file.uri) not in _OF_CLIP_BENCHMARK]
    left["texts without a picture" if images else "texts"] = without_picture(texts, images)
    found = {kind: [file.uri for file in files] for kind, files in left.items()}
    found["linked folders that are read under another path"] = chosen.source.below.passed_over
    found["pipes, sockets and devices"] = chosen.source.below.special
    return {with_cure(kind): uris for kind, uris in sorted(found.items()) if uris}


def worth_telling(chosen: Chosen, options: ReaderOptions, beside: Collection[str]) -> dict[str, str]:
    """Return what is not read of a source and may hold samples that somebody misses: URI → kind.

    Sidecars of shards, statistics, markers such as `_SUCCESS`, and kinds that --input_format does not ask for are no
    loss.

    Args:
        chosen: what was found in the source.
        options: names the format that was asked for.
        beside: the folders and the stems of tars that the inputs name.
    """
    told, left = {}, left_out(chosen, options)
    targets = {os.path.realpath(uri) for uri in chosen.read if os.path.islink(uri)} if left else set()
    for kind, uris in left.items():
        if kind in _NO_LOSS or (options.input_format != "auto" and kind.startswith(_ASKED_FOR)):
            continue
        if kind == "sidecar Parquet":
            kind, uris = "Parquet files without images", _without_shard(chosen, beside)
        for uri in uris:
            is_marker = kind == "no extension" and posixpath.basename(uri).startswith("_")
            if not is_marker and uri not in targets:  # Hugging Face's cache has links to nameless files
                told[uri] = kind
    told |= dict.fromkeys(_further_texts(chosen, options), "further texts of a picture")
    told |= {file.uri: "Parquet files with images and the name of a tar" for file in chosen.parquet.shadowed}
    told |= dict.fromkeys(chosen.parquet.further, "columns of further pictures")
    folders = [folder for folder in chosen.skipped.folders if posixpath.basename(folder) not in _LEFTOVERS]
    return told | {f: "skipped folders" for f in sorted(folders) if posixpath.basename(f).startswith("_")}


def _further_texts(chosen: Chosen, options: ReaderOptions) -> list[str]:
    """Return the texts beside pictures that have another text, which is their caption."""
    if not chosen.images or options.caption_column is not None:
        return []
    texts: dict[str, list[FileInfo]] = defaultdict(list)
    for file in chosen.kinds["caption"]:
        if file.size:
            texts[stem_of(file.uri)].append(file)
    stems = {stem_of(image.uri) for image in chosen.images}
    order = CAPTION_EXTENSIONS.index
    return [
        file.uri
        for key, files in texts.items()
        if len(files) > 1 and key in stems
        for file in sorted(files, key=lambda file: order(file.uri.rpartition(".")[2].lower()))[1:]
    ]


def _without_shard(chosen: Chosen, beside: Collection[str]) -> list[str]:
    """Return the Parquet files beside shards or pictures whose name is that of none of them."""
    stems = {stem(file.uri) for file in chosen.visible if kind_of(file.uri) in ("tar", "tfrecord")} | set(beside)
    stems |= {posixpath.dirname(image.uri) for image in chosen.kinds["image"]}
    return [file.uri for file in chosen.parquet.sidecars if stem(file.uri) not in stems]


def summed(found: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Sum up what is not read, URI → kind: kind → (number, name of the first)."""
    kinds: dict[str, tuple[int, str]] = {}
    for uri, kind in found.items():
        count, first = kinds.get(kind, (0, text_of(posixpath.basename(uri))))
        kinds[kind] = (count + 1, first)
    return dict(sorted(kinds.items()))
