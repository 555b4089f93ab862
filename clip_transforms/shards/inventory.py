"""Take inventory of --input: find shards, cut them into units, and say what was not taken.

It reads no image, and only the footers of Parquet files.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Container, Sequence

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import text_of
from clip_transforms.shards.beside import files_beside
from clip_transforms.shards.chosen import Chosen, choose_files, without_datasets
from clip_transforms.shards.cut import cut_folder, cut_parquet
from clip_transforms.shards.cut_listing import ListingSideFile
from clip_transforms.shards.detection import describe, remarks
from clip_transforms.shards.hive import names_in
from clip_transforms.shards.inputs import Source, find_sources
from clip_transforms.shards.kinds import kind_of, stem
from clip_transforms.shards.left_out import worth_telling
from clip_transforms.shards.listing_plan import plan_listing
from clip_transforms.shards.parquet_columns import ColumnError, check_wanted
from clip_transforms.shards.parquet_remarks import parquet_remarks
from clip_transforms.shards.picture_paths import paths_that_begin_above
from clip_transforms.shards.places import is_among, paths_of
from clip_transforms.shards.refusals import nothing_to_read
from clip_transforms.shards.side_file import SideFile
from clip_transforms.shards.skipping import Skipping
from clip_transforms.shards.unit import UNLISTED, PlanError, ReaderOptions, Unit, part_name
from clip_transforms.storage import FileInfo


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
        left_out: what may hold samples and is not read: URI → kind.
    """

    units: list[Unit] = dataclasses.field(default_factory=list)
    side_files: dict[str, SideFile] = dataclasses.field(default_factory=dict)
    detection: list[str] = dataclasses.field(default_factory=list)
    broken: dict[str, ValueError] = dataclasses.field(default_factory=dict)
    columns: set[str] = dataclasses.field(default_factory=set)
    folder_values: set[str] = dataclasses.field(default_factory=set)
    unread: set[str] = dataclasses.field(default_factory=set)
    roots: set[str] = dataclasses.field(default_factory=set)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

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
            if not all(without_datasets(source.files)[1] for source in of_pattern):
                raise empty[0]
    if empty and not inventory.units:
        raise empty[0]
    if len({unit.part for unit in inventory.units}) < len(inventory.units):
        raise RuntimeError("two units of the input would have the same part; please report this with the command")
    inventory.detection += [f"warning: --exclude {pattern} matches nothing" for pattern in skipping.unused]
    for uri in taken & inventory.left_out.keys():  # one input leaves out what another names
        del inventory.left_out[uri]
    _check(inventory, options)
    return inventory


def _take(
    inventory: Inventory, source: Source, options: ReaderOptions, taken: set[str], beside: set[str], skipping: Skipping
) -> int:
    """Add the units of one source to the inventory, and the lines about it.

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
    chosen = choose_files(source, options, beside, skipping)
    _take_tars(inventory, chosen, taken)
    _take_parquet(inventory, chosen, taken)
    _take_images(inventory, chosen, options, taken)
    hints = [
        hint
        for file, schema in chosen.listings
        if file.uri not in taken
        for hint in _take_listing(inventory, file, schema, options)
    ]
    taken.update(chosen.read)
    inventory.folder_values |= names_in(chosen.read) if options.columns else set()
    inventory.detection += [
        describe(chosen, options),
        *parquet_remarks(chosen.parquet, options),
        *paths_that_begin_above(source.root, chosen.parquet, chosen.pictures.bases, options),
        *hints,
        *remarks(chosen, options),
    ]
    inventory.left_out |= worth_telling(chosen, options, beside)
    _take_unlisted(inventory, [place for place in chosen.unlisted if place.uri not in taken])
    taken.update(place.uri for place in chosen.unlisted)
    inventory.roots.add(source.root)
    explained = sum(stem(file.uri) in beside for file in chosen.parquet.sidecars)
    explained += source.root in source.below.passed_over
    return len(chosen.read) + len(chosen.unlisted) + explained


def _take_tars(inventory: Inventory, chosen: Chosen, taken: Container[str]) -> None:
    """Add a unit for each tar and each TFRecord."""
    shards = ((file, "webdataset") for file in chosen.tars), ((file, "tfrecord") for file in chosen.tfrecords)
    for file, format_ in itertools.chain(*shards):
        if file.uri not in taken:
            unit = Unit(file.uri, file.uri, format_, 0, 0, 0, file.stamp, file.size, part_name(file.uri))
            inventory.units.append(unit)


def _take_parquet(inventory: Inventory, chosen: Chosen, taken: Container[str]) -> None:
    """Add the units of Parquet files with images, and one for each file that cannot be read."""
    parquet = chosen.parquet
    for file, metadata in parquet.images:
        inventory.columns |= set(paths_of(metadata.schema.to_arrow_schema()))
        if file.uri not in taken:
            inventory.units.extend(
                cut_parquet(
                    file, metadata, parquet.recognised.get(file.uri, ""), chosen.pictures.bases.get(file.uri, "")
                )
            )
    for file, error in parquet.broken:
        if file.uri not in taken:
            part = part_name(file.uri, "0-0")
            inventory.units.append(Unit(file.uri, file.uri, "parquet", 0, 0, 0, file.stamp, file.size, part))
            inventory.broken[part] = error
            inventory.unread.add(file.uri)


def _take_unlisted(inventory: Inventory, places: Sequence[storage.Unlisted]) -> None:
    """Add a unit for each folder that cannot be listed; reading it becomes a reject."""
    for uri, reason in places:
        part = part_name(uri, UNLISTED)
        inventory.units.append(Unit(text_of(uri), uri, UNLISTED, 0, 0, 0, UNLISTED, 0, part))
        inventory.detection.append(f"warning: {text_of(uri)} will be a reject: it cannot be listed: {reason}")


def _take_images(inventory: Inventory, chosen: Chosen, options: ReaderOptions, taken: Container[str]) -> None:
    """Cut the pictures of a source into units."""
    if not chosen.images:
        return
    source = chosen.source
    images = [image for image in chosen.images if image.uri not in taken]
    # If a glob, or names, chose the pictures, their captions must be looked for.
    beside = chosen.visible if source.is_folder else files_beside(images, options)
    name = source.root if source.is_folder else storage.normalise(source.name)
    side_file = f"files-{len(inventory.side_files)}.parquet"
    units, inventory.side_files[side_file] = cut_folder(source.root, name, side_file, images, beside, options)
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
