"""Take inventory of --input: find shards, cut them into units, and say what was not taken.

It reads no image, and only the footers of Parquet files.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import posixpath
from collections.abc import Container, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.shards.batches import text_of
from clip_transforms.shards.beside import files_beside, sniff, without_picture
from clip_transforms.shards.cut import cut_folder, cut_parquet
from clip_transforms.shards.cut_listing import ListingSideFile
from clip_transforms.shards.detection import delta_tables, describe, missing_tars, unread_listings
from clip_transforms.shards.hive import names_in
from clip_transforms.shards.inputs import Source, find_sources
from clip_transforms.shards.kinds import by_kind, kind_of, stem
from clip_transforms.shards.listing_plan import plan_listing
from clip_transforms.shards.parquet_columns import ColumnError, check_wanted
from clip_transforms.shards.parquet_files import ParquetFiles, sort_parquet
from clip_transforms.shards.places import is_among, paths_of
from clip_transforms.shards.refusals import nothing_to_read, refuse_two_kinds
from clip_transforms.shards.skipping import Skipping
from clip_transforms.shards.unit import UNLISTED, PlanError, ReaderOptions, Unit, part_name
from clip_transforms.storage import FileInfo


class SideFile(Protocol):
    """A Parquet file beside the plan that holds a folder's paths or a listing's rows."""

    schema: pa.Schema

    def tables(self, wanted: Container[str]) -> Iterator[pa.Table]:
        """Yield one table per row group; those of parts that are not wanted may be empty."""


@dataclasses.dataclass
class Inventory:
    """Everything that was found in the inputs.

    Attributes:
        units: the units, in the order of the inputs.
        side_files: name → side file, for the units of folders and listings.
        detection: lines that say what was taken and what was not.
        broken: part → reason, for Parquet files that cannot be read and became units without rows.
        columns: all columns of Parquet files and listings, as `places.paths_of` names them.
        folder_values: names of the values that the names of folders give, such as `split` of `split=train`.
        unread: URIs of the shards that could not be read to their end when they were cut.
        roots: URIs of the folders that were searched.
    """

    units: list[Unit] = dataclasses.field(default_factory=list)
    side_files: dict[str, SideFile] = dataclasses.field(default_factory=dict)
    detection: list[str] = dataclasses.field(default_factory=list)
    broken: dict[str, ValueError] = dataclasses.field(default_factory=dict)
    columns: set[str] = dataclasses.field(default_factory=set)
    folder_values: set[str] = dataclasses.field(default_factory=set)
    unread: set[str] = dataclasses.field(default_factory=set)
    roots: set[str] = dataclasses.field(default_factory=set)

    @property
    def formats(self) -> set[str]:
        """The formats of the units."""
        return {unit.format for unit in self.units} - {UNLISTED}


def take_inventory(inputs: Sequence[str], options: ReaderOptions) -> Inventory:
    """Find the shards that the inputs name and cut them into units.

    Args:
        inputs: folders, files, globs, brace patterns, or `@file` with one of these per line, on any fsspec file system.
        options: the format to take, and the settings of the readers; checked against the files that were found.
    Raises:
        PlanError: if an input matches nothing or holds nothing to read, or an option does not fit it.
    """
    inventory = Inventory()
    taken: set[str] = set()  # a shard that is named twice is read once
    skipping = Skipping(options.exclude)
    sources = find_sources(inputs, skipping)
    shards = ("tar", "tfrecord")
    beside = {stem(file.uri) for source in sources for file in source.files if kind_of(file.uri) in shards}
    beside |= {source.root for source in sources if source.is_folder}
    empty = []
    for pattern, group in itertools.groupby(sources, key=operator.attrgetter("pattern")):
        of_pattern = list(group)
        if not sum([_take(inventory, source, options, taken, beside, skipping) for source in of_pattern]):
            empty.append(nothing_to_read(pattern, of_pattern, options.input_format, skipping))
            # An output among the inputs is fine, as in the second run of `--input web/* --output web/out`.
            if not all(_without_datasets(source.files)[1] for source in of_pattern):
                raise empty[0]
    if empty and not inventory.units:
        raise empty[0]
    if len({unit.part for unit in inventory.units}) < len(inventory.units):
        raise RuntimeError("two units of the input would have the same part; please report this with the command")
    inventory.detection += [f"warning: --exclude {pattern} matches nothing" for pattern in skipping.unused]
    _check(inventory, options)
    return inventory


def _take(
    inventory: Inventory, source: Source, options: ReaderOptions, taken: set[str], beside: set[str], skipping: Skipping
) -> int:
    """Add the units of one source to the inventory.

    Args:
        inventory: gets the units.
        source: the files to look at.
        options: the format to take, and the settings of the readers.
        taken: URIs of the files that were taken so far; gets those of this source.
        beside: the folders and the stems of tars that the inputs name; a Parquet file beside one may be its sidecar.
        skipping: decides what is left out.
    Returns:
        The number of files that were taken or are accounted for.
    """
    wanted, name, root = options.input_format, source.name, source.root
    files, outputs = _without_datasets(source.files)
    met = source.below
    unlisted = [place for place in met.unlisted if not skipping.skips_below(place.uri[len(root) :].strip("/"))]
    hidden = [*met.skipped, *(place.uri for place in met.unlisted if place not in unlisted)]
    hidden = [folder for folder in hidden if not outputs or not folder.startswith(outputs)]
    visible, skipped = skipping.keep(files, root, source.pattern, hidden)
    kinds = by_kind(visible)
    if wanted in ("auto", "folder") and (sniffed := sniff(kinds["no extension"], visible)):
        kinds["no extension"] = [file for file in kinds["no extension"] if file.uri not in sniffed]
        kinds["image"] = [file for file in visible if file.uri in sniffed or kind_of(file.uri) == "image"]
    tars = kinds["tar"] if wanted in ("auto", "webdataset") else []
    tfrecords = kinds["tfrecord"] if wanted in ("auto", "tfrecord") else []
    parquet = ParquetFiles()
    if wanted in ("auto", "parquet", "listing"):
        parquet = sort_parquet(kinds["parquet"], visible, options, beside)
    shards = [*tars, *tfrecords, *(file for file, _ in parquet.images)]
    images = kinds["image"] if wanted == "folder" or (wanted == "auto" and not shards) else []
    if wanted == "auto" and shards:
        refuse_two_kinds(name, root, kinds["image"], tars, tfrecords, parquet)
    listings: list[tuple[FileInfo, pa.Schema | None]] = []
    if wanted == "listing" or (wanted == "auto" and not shards and not images):
        listings = [*((file, None) for file in kinds["listing"]), *parquet.listings]
        listings = listings or [(file, None) for file in _json_listings(kinds, source.is_folder, wanted)]
    if parquet.others and not shards and not images and not listings:
        file, schema = parquet.others[0]
        raise PlanError(
            f"{file.uri} has no column of image bytes, of URIs or of captions (columns: {', '.join(schema.names)}); "
            "name one with --image_column or --caption_column, or give only the files that have one"
        )
    for file in (*shards, *(file for file, _ in (*listings, *parquet.broken))):
        if text_of(file.uri) != file.uri:
            raise PlanError(f"{text_of(file.uri)}: the name of this shard is not UTF-8; rename it")
    for file, format_ in (*((file, "webdataset") for file in tars), *((file, "tfrecord") for file in tfrecords)):
        if file.uri not in taken:
            unit = Unit(file.uri, file.uri, format_, 0, 0, 0, file.stamp, file.size, part_name(file.uri))
            inventory.units.append(unit)
    for file, metadata in parquet.images:
        inventory.columns |= set(paths_of(metadata.schema.to_arrow_schema()))
        if file.uri not in taken:
            inventory.units.extend(cut_parquet(file, metadata, parquet.recognised.get(file.uri, "")))
    for file, error in parquet.broken:
        if file.uri not in taken:
            part = part_name(file.uri, "0-0")
            inventory.units.append(Unit(file.uri, file.uri, "parquet", 0, 0, 0, file.stamp, file.size, part))
            inventory.broken[part] = error
            inventory.unread.add(file.uri)
    if images:
        pictures = [image for image in images if image.uri not in taken]
        _take_images(inventory, name, root, pictures, visible if source.is_folder else None, options)
    hints = [
        hint
        for file, schema in listings
        if file.uri not in taken
        for hint in _take_listing(inventory, file, schema, options)
    ]
    read = [file.uri for file in (*shards, *images, *(file for file, _ in (*listings, *parquet.broken)))]
    taken.update(read)
    inventory.folder_values |= names_in(read) if options.columns else set()
    line = describe(name, kinds, tars, tfrecords, images, listings, parquet, met, options)
    line += f"; left out: {counted(len(outputs), 'dataset')} of this program" if outputs else ""
    inventory.detection.append(line + skipped.describe())
    inventory.detection += [*parquet.remarks, *hints, *missing_tars(visible, tars)]
    if images and wanted == "auto" and not kinds["caption"]:
        inventory.detection += unread_listings(
            [*kinds["listing"], *parquet.sidecars, *without_picture(kinds["json"], images)]
        )
    if parquet.images or parquet.listings:
        inventory.detection += delta_tables(skipped.folders)
    _take_unlisted(inventory, [place for place in unlisted if place.uri not in taken])
    taken.update(place.uri for place in unlisted)
    inventory.roots.add(root)
    explained = sum(stem(file.uri) in beside for file in parquet.sidecars)
    explained += root in met.passed_over
    return len(shards) + len(images) + len(listings) + len(parquet.broken) + len(unlisted) + explained


def _take_unlisted(inventory: Inventory, places: Sequence[storage.Unlisted]) -> None:
    """Add a unit for each folder that cannot be listed; reading it becomes a reject."""
    for uri, reason in places:
        part = part_name(uri, UNLISTED)
        inventory.units.append(Unit(text_of(uri), uri, UNLISTED, 0, 0, 0, UNLISTED, 0, part))
        inventory.detection.append(f"warning: {text_of(uri)} will be a reject: it cannot be listed: {reason}")


def _json_listings(kinds: dict[str, list[FileInfo]], is_folder: bool, wanted: str) -> list[FileInfo]:
    """Return the JSON files that may be listings. In a folder, one must be asked for, or nothing else be there."""
    alone = all(kind == "json" for kind, files in kinds.items() if files)
    return without_picture(kinds["json"], kinds["image"]) if alone or not is_folder or wanted == "listing" else []


def _take_images(
    inventory: Inventory,
    name: str,
    root: str,
    images: list[FileInfo],
    visible: list[FileInfo] | None,
    options: ReaderOptions,
) -> None:
    """Cut the pictures of a folder into units.

    Args:
        inventory: gets the units.
        name: name of the source.
        root: URI of the folder that the keys are relative to.
        images: the pictures.
        visible: all files of the folder; None if a glob, or names, chose the pictures, so that their captions must
            be looked for.
        options: names the extension of the captions.
    """
    side_file = f"files-{len(inventory.side_files)}.parquet"
    source = storage.normalise(name) if visible is None else root
    beside = files_beside(images, options) if visible is None else visible
    units, inventory.side_files[side_file] = cut_folder(root, source, side_file, images, beside, options)
    inventory.units.extend(units)


def _take_listing(inventory: Inventory, file: FileInfo, schema: pa.Schema | None, options: ReaderOptions) -> list[str]:
    """Add the units of a listing; return lines if little can come of it."""
    listing = plan_listing(file.uri, schema, options)
    inventory.columns |= set(listing.form.names or []) if schema is None else set(paths_of(schema))
    name = f"rows-{len(inventory.side_files)}.parquet"
    inventory.side_files[name] = side_file = ListingSideFile(file.uri, listing.form, name, listing.offers)
    inventory.units.extend(side_file.cut())
    inventory.unread |= {file.uri} if side_file.damaged else set()
    return listing.hints


def _without_datasets(files: list[FileInfo]) -> tuple[list[FileInfo], tuple[str, ...]]:
    """Drop outputs of this program, which may lie below an input; return the other files, and the outputs' folders."""
    outputs = tuple(f"{posixpath.dirname(f.uri)}/" for f in files if posixpath.basename(f.uri) == "_dataset.json")
    return [file for file in files if not file.uri.startswith(outputs)] if outputs else files, outputs


def _check(inventory: Inventory, options: ReaderOptions) -> None:
    """Refuse options that fit no shard of this run."""
    whole = [unit for unit in inventory.units if unit.part not in inventory.broken and unit.format != UNLISTED]
    for part, error in inventory.broken.items():
        # One damaged file among others becomes a reject. If there is no good one, the input itself is wrong.
        if not whole or (isinstance(error, ColumnError) and not any(unit.format == "parquet" for unit in whole)):
            raise PlanError(str(error))
        shard = next(unit.shard for unit in inventory.units if unit.part == part)
        inventory.detection.append(f"warning: {shard} will be a reject: {error}")
    if inventory.formats <= {"parquet", "listing"} and inventory.columns:
        try:
            check_wanted(inventory.columns | inventory.folder_values, options)
        except ColumnError as error:
            raise PlanError(str(error)) from None
    if not whole and inventory.units:
        raise PlanError(
            f"{inventory.units[0].shard} cannot be listed, and there is no other input; check who may read it"
        )
    inventory.detection += _folder_values(inventory, options)
    fields = ({"parquet", "listing", "tfrecord"}, "Parquet files, TFRecords and listings")
    for flag, value, formats, kind in (
        ("image_extension", options.image_extension, {"webdataset"}, "webdataset tars"),
        ("image_column", options.image_column, *fields),
        ("key_column", options.key_column, *fields),
        ("allow_uri", " ".join(options.allow_uri), {"parquet", "listing"}, "Parquet files and listings"),
    ):
        if value and not formats & inventory.formats:
            raise PlanError(f"--{flag} {value} is for {kind}, but --input has none; omit it")


def _folder_values(inventory: Inventory, options: ReaderOptions) -> list[str]:
    """Say which value is taken where the name of a folder gives one and the source may have another."""
    lines = []
    for field in [column.field for column in options.columns if column.field in inventory.folder_values]:
        if is_among(field, inventory.columns):
            lines.append(f"note: {field} is a column, and in the names of folders too ({field}=…); the column is taken")
        elif inventory.formats & {"webdataset", "folder"}:
            lines.append(
                f"note: {field} is taken from the names of folders ({field}=…) unless a sample has a {field} of its own"
            )
    return lines
