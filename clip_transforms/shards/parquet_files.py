"""Sort Parquet files by their footers: pictures, listings, sidecars and others."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import posixpath
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.column_types import may_be_pictures
from clip_transforms.shards.kinds import kind_of, stem
from clip_transforms.shards.parquet_columns import (
    CAPTION_COLUMNS,
    NAMED,
    ColumnError,
    asked_caption,
    caption_column,
    check_columns,
    find,
    image_column,
    places_of_pictures,
    several_pictures,
    texts_in_bytes,
    uri_column,
)
from clip_transforms.shards.parquet_sniff import begin_as_pictures
from clip_transforms.shards.places import column_of, is_in_list, type_at
from clip_transforms.shards.row_groups import DAMAGE
from clip_transforms.shards.unit import PlanError, ReaderOptions
from clip_transforms.storage import FileInfo

_FOOTER_THREADS = 16


@dataclasses.dataclass
class ParquetFiles:
    """The Parquet files of one input.

    Attributes:
        images: files with image bytes, and their footers.
        listings: files with URIs or captions but without image bytes, and their schemas.
        sidecars: files that only describe the tars or pictures beside them.
        shadowed: those sidecars that hold images all the same, and have the name of a tar.
        unread: unreadable files beside tars or pictures; most probably sidecars.
        others: files without a column that we use, and their schemas.
        broken: files that cannot be read or whose columns cannot be used, and the reason as a sentence.
        recognised: URI → place of the pictures, for files where only the bytes tell it.
        further: columns with pictures beside those that are read: the first file that has it, `/` and the place.
    """

    images: list[tuple[FileInfo, pq.FileMetaData]] = dataclasses.field(default_factory=list)
    listings: list[tuple[FileInfo, pa.Schema]] = dataclasses.field(default_factory=list)
    sidecars: list[FileInfo] = dataclasses.field(default_factory=list)
    shadowed: list[FileInfo] = dataclasses.field(default_factory=list)
    unread: list[FileInfo] = dataclasses.field(default_factory=list)
    others: list[tuple[FileInfo, pa.Schema]] = dataclasses.field(default_factory=list)
    broken: list[tuple[FileInfo, ValueError]] = dataclasses.field(default_factory=list)
    recognised: dict[str, str] = dataclasses.field(default_factory=dict)
    further: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Footer:
    """What was read of a file.

    Attributes:
        metadata: the footer.
        schema: the types of the columns.
        pictures: if no column has a usual name for images, the places whose bytes begin as a picture does.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    pictures: Sequence[str] = ()


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
    if not files:
        return ParquetFiles()
    alone = options.input_format != "auto"  # a format that was asked for has no sidecars
    tars = set() if alone else {stem(file.uri) for file in visible if kind_of(file.uri) in ("tar", "tfrecord")}
    folders = {posixpath.dirname(file.uri) for file in visible if kind_of(file.uri) == "image"}
    if not alone:
        folders |= set(named)
    beside = (
        any(kind_of(file.uri) in ("image", "tar", "tfrecord") for file in visible) and options.input_format != "listing"
    )
    # Sidecars are recognised by their names: opening each of them would turn planning from seconds into minutes. Only
    # if the largest of them holds images, which are most often those of the tar, all are opened.
    found = ParquetFiles(sidecars=[file for file in files if stem(file.uri) in tars])
    rest = [file for file in files if stem(file.uri) not in tars]
    if found.sidecars and _holds_images(max(found.sidecars, key=lambda file: file.size), options):
        found.shadowed = [file for file in found.sidecars if _holds_images(file, options)]
    footers: dict[str, _Footer] = {}
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for file, footer in zip(rest, pool.map(functools.partial(_look, options), rest), strict=True):
            if not isinstance(footer, _Footer):
                if beside:
                    found.unread.append(file)
                else:
                    found.broken.append((file, footer))
                continue
            footers[file.uri] = footer
            try:
                _sort(found, file, footer, options, beside or stem(file.uri) in folders)
            except ColumnError as error:
                found.broken.append((file, ColumnError(f"{error} ({file.uri})")))
    _compare_siblings(found, footers, options)
    if options.input_format != "listing" and not options.image_column:
        found.further = _further_pictures(found, footers, options)
    return found


def _sort(found: ParquetFiles, file: FileInfo, footer: _Footer, options: ReaderOptions, is_beside: bool) -> None:
    """Put a file where it belongs.

    Raises:
        ColumnError: if its columns cannot be used.
    """
    schema = footer.schema
    place = None if options.input_format == "listing" else image_column(schema, options)
    if place is None and len(footer.pictures) == 1 and not is_in_list(schema, footer.pictures[0]):
        place = found.recognised[file.uri] = footer.pictures[0]
    if place is not None:
        check_columns(schema, options)
        found.images.append((file, footer.metadata))
    elif is_beside:
        found.sidecars.append(file)
    elif footer.pictures:
        raise _choose(footer.pictures)
    elif is_listing(schema, options):
        check_columns(schema, options)
        found.listings.append((file, schema))
    else:
        found.others.append((file, schema))


def _choose(pictures: Sequence[str]) -> ColumnError:
    """Return the error for a file whose pictures are found by their bytes and in several places."""
    if len(pictures) == 1 and pictures[0].endswith("[0]"):
        return several_pictures(pictures[0].removesuffix("[0]"))
    named = " and ".join(pictures[:NAMED])
    return ColumnError(
        f"the bytes in {named} are pictures, and none of the columns has a usual name for images; choose one: "
        f"--image_column '{pictures[0]}'"
    )


def _compare_siblings(found: ParquetFiles, footers: dict[str, _Footer], options: ReaderOptions) -> None:
    """Decide about files by the other files of the input.

    Where the bytes of one file tell the column of pictures, it is that column in all. A file whose image column has
    another type than in its siblings is treated as damaged.
    """
    places = {image_column(metadata.schema.to_arrow_schema(), options) for _, metadata in found.images}
    known = {place for place in places if place} | set(found.recognised.values())
    for files in (found.listings, found.others):
        for file, schema in list(files):
            place = next((place for place in sorted(known) if type_at(schema, place) is not None), None)
            if place is None:
                continue
            files.remove((file, schema))
            type_ = type_at(schema, place)
            if type_ is not None and may_be_pictures(type_):
                found.recognised[file.uri] = place
                found.images.append((file, footers[file.uri].metadata))
            else:
                problem = f"{place} is {type_}, but binary in the other files ({file.uri})"
                found.broken.append((file, ColumnError(problem)))


def _holds_images(file: FileInfo, options: ReaderOptions) -> bool:
    footer = _look(options, file)
    return isinstance(footer, _Footer) and image_column(footer.schema, options) is not None


def _further_pictures(found: ParquetFiles, footers: dict[str, _Footer], options: ReaderOptions) -> list[str]:
    """Return the columns of pictures beside those that are read; of files with the same columns one is opened."""
    further: list[str] = []
    seen = set()
    for file, _ in found.images:
        schema = footers[file.uri].schema
        read = found.recognised.get(file.uri) or image_column(schema, options) or ""
        caption = caption_column(schema, options)
        used = (column_of(schema, read), caption and caption[0])
        places = tuple(place for place in places_of_pictures(schema) if column_of(schema, place) not in used)
        if places and places not in seen:
            seen.add(places)
            with storage.open_input(file.uri) as opened:
                parquet = pq.ParquetFile(opened, metadata=footers[file.uri].metadata, buffer_size=1 << 20)
                further += [f"{file.uri}/{place}" for place in begin_as_pictures(parquet, places)]
    return further


def is_listing(schema: pa.Schema, options: ReaderOptions) -> bool:
    """Return whether there is a column of URIs or of captions."""
    asked, _ = asked_caption(schema.names, options)
    if uri_column(schema, options) or (asked and type_at(schema, asked) is not None):
        return True
    return bool(find(schema.names, CAPTION_COLUMNS) or texts_in_bytes(schema, options))


def _look(options: ReaderOptions, file: FileInfo) -> _Footer | PlanError:
    try:
        with storage.open_input(file.uri) as opened:
            metadata = pq.read_metadata(opened)
            schema = metadata.schema.to_arrow_schema()
            if options.input_format == "listing" or options.image_column or image_column(schema, options) is not None:
                return _Footer(metadata, schema)
            places = places_of_pictures(schema)
            if not places:
                return _Footer(metadata, schema)
            parquet = pq.ParquetFile(opened, metadata=metadata, pre_buffer=False, buffer_size=1 << 20)
            return _Footer(metadata, schema, begin_as_pictures(parquet, places))
    except DAMAGE as error:
        if storage.is_of_the_machine(error):
            raise
        return PlanError(f"{file.uri} is not readable as Parquet: {error}; mend it or leave it out of --input")
