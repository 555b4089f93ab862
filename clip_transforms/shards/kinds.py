"""Tell what files are: by their names, and Parquet files by their footers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.parquet import DAMAGE
from clip_transforms.shards.parquet_columns import (
    CAPTION_COLUMNS,
    ColumnError,
    asked_caption,
    check_columns,
    find,
    image_column,
    uri_column,
)
from clip_transforms.shards.unit import (
    CAPTION_EXTENSIONS,
    COMPRESSIONS,
    IMAGE_EXTENSIONS,
    LISTING_EXTENSIONS,
    PlanError,
    ReaderOptions,
)
from clip_transforms.storage import FileInfo

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_TFRECORD = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?$")
_COMPRESSED_LISTINGS = tuple(f".{name}{end}" for name in (*LISTING_EXTENSIONS, "json") for end in COMPRESSIONS)
_FOOTER_THREADS = 16


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
    return extension if extension in ("parquet", "json") else f".{extension}" if "." in lower else "no extension"


def by_kind(files: Sequence[FileInfo]) -> dict[str, list[FileInfo]]:
    """Sort files by the kind that their names tell."""
    kinds: dict[str, list[FileInfo]] = defaultdict(list)
    for file in files:
        kinds[kind_of(file.uri)].append(file)
    return kinds


@dataclasses.dataclass
class ParquetFiles:
    """The Parquet files of one input.

    Attributes:
        images: files with image bytes, and their footers.
        listings: files with URIs or captions but without image bytes, and their schemas.
        sidecars: files that only describe the tars or pictures beside them.
        unread: unreadable files beside tars or pictures; most probably sidecars.
        others: files without a column that we use, and their schemas.
        broken: files that cannot be read or whose columns cannot be used, and the reason as a sentence.
    """

    images: list[tuple[FileInfo, pq.FileMetaData]] = dataclasses.field(default_factory=list)
    listings: list[tuple[FileInfo, pa.Schema]] = dataclasses.field(default_factory=list)
    sidecars: list[FileInfo] = dataclasses.field(default_factory=list)
    unread: list[FileInfo] = dataclasses.field(default_factory=list)
    others: list[tuple[FileInfo, pa.Schema]] = dataclasses.field(default_factory=list)
    broken: list[tuple[FileInfo, ValueError]] = dataclasses.field(default_factory=list)


def sort_parquet(
    files: list[FileInfo], visible: list[FileInfo], options: ReaderOptions, named: Collection[str] = ()
) -> ParquetFiles:
    """Sort Parquet files by their footers.

    Args:
        files: the Parquet files.
        visible: all files of the input; tars and pictures make sidecars of the Parquet files beside them.
        options: names the columns to take.
        named: folders and stems of tars that other inputs name; a file beside one is a sidecar if it has no images.
    """
    alone = options.input_format != "auto"  # a format that was asked for has no sidecars
    tars = set() if alone else {stem(file.uri) for file in visible if kind_of(file.uri) in ("tar", "tfrecord")}
    folders = {posixpath.dirname(file.uri) for file in visible if kind_of(file.uri) == "image"}
    if not alone:
        folders |= set(named)
    beside = (
        any(kind_of(file.uri) in ("image", "tar", "tfrecord") for file in visible) and options.input_format != "listing"
    )
    # Sidecars are recognised by their names: opening each of them would turn planning from seconds into minutes.
    found = ParquetFiles(sidecars=[file for file in files if stem(file.uri) in tars])
    rest = [file for file in files if stem(file.uri) not in tars]
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for file, metadata in zip(rest, pool.map(_footer, rest), strict=True):
            if not isinstance(metadata, pq.FileMetaData):
                if beside:
                    found.unread.append(file)
                else:
                    found.broken.append((file, metadata))
                continue
            schema = metadata.schema.to_arrow_schema()
            try:
                if options.input_format != "listing" and image_column(schema, options) is not None:
                    check_columns(schema, options)
                    found.images.append((file, metadata))
                elif beside or stem(file.uri) in folders:
                    found.sidecars.append(file)
                elif is_listing(schema, options):
                    check_columns(schema, options)
                    found.listings.append((file, schema))
                else:
                    found.others.append((file, schema))
            except ColumnError as error:
                found.broken.append((file, ColumnError(f"{error} ({file.uri})")))
    _recognise_damaged(found, options)
    return found


def _recognise_damaged(found: ParquetFiles, options: ReaderOptions) -> None:
    """Treat a file as damaged if its image column has another type than in its siblings."""
    names = {image_column(metadata.schema.to_arrow_schema(), options) for _, metadata in found.images}
    for files in (found.listings, found.others):
        for file, schema in [pair for pair in files if names & set(pair[1].names)]:
            files.remove((file, schema))
            name = next(name for name in names if name in schema.names)
            type_ = schema.field(name).type
            found.broken.append((file, ColumnError(f"{name} is {type_}, but binary in the other files ({file.uri})")))


def is_listing(schema: pa.Schema, options: ReaderOptions) -> bool:
    """Return whether there is a column of URIs or of captions."""
    asked, _ = asked_caption(schema.names, options)
    return bool(uri_column(schema, options) or asked in schema.names or find(schema.names, CAPTION_COLUMNS))


def stem(uri: str) -> str:
    """Return the URI of a shard without its extension; its sidecar has the same stem."""
    for suffix in (*_TAR_SUFFIXES, ".parquet"):
        if uri.lower().endswith(suffix):
            return uri[: -len(suffix)]
    found = _TFRECORD.search(uri.lower())
    return uri[: found.start()] if found else uri


def _footer(file: FileInfo) -> pq.FileMetaData | PlanError:
    try:
        with storage.open_input(file.uri) as opened:
            metadata = pq.read_metadata(opened)
            metadata.schema.to_arrow_schema()
            return metadata
    except DAMAGE as error:
        if storage.is_of_the_machine(error):
            raise
        return PlanError(f"{file.uri} is not readable as Parquet: {error}; mend it or leave it out of --input")
