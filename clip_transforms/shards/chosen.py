"""Choose the files of a source that will be read, by their kinds and by --input_format."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import text_of
from clip_transforms.shards.beside import sniff, without_picture
from clip_transforms.shards.inputs import Source
from clip_transforms.shards.kinds import by_kind, kind_of
from clip_transforms.shards.parquet_files import ParquetFiles, sort_parquet
from clip_transforms.shards.picture_paths import NamedPictures, find_named_pictures
from clip_transforms.shards.refusals import refuse_two_kinds
from clip_transforms.shards.skipping import Skipped, Skipping
from clip_transforms.shards.unit import PlanError, ReaderOptions
from clip_transforms.storage import FileInfo


@dataclasses.dataclass
class Chosen:
    """The files of one source that will be read, and what was met beside them.

    Attributes:
        source: the source.
        visible: its files, without those that are left out.
        kinds: the visible files by kind, as `by_kind` sorts them.
        tars, tfrecords, images: the tars, TFRecords and pictures to read.
        listings: the listings to read; with their schemas, if they are Parquet files.
        parquet: the Parquet files, to read or not.
        unlisted: folders that cannot be listed.
        skipped: what is left out and shown.
        pictures: those that the Parquet files name.
        num_outputs: number of datasets of this program, which are left out.
    """

    source: Source
    visible: list[FileInfo]
    kinds: dict[str, list[FileInfo]]
    unlisted: list[storage.Unlisted]
    skipped: Skipped
    num_outputs: int
    tars: list[FileInfo] = dataclasses.field(default_factory=list)
    tfrecords: list[FileInfo] = dataclasses.field(default_factory=list)
    images: list[FileInfo] = dataclasses.field(default_factory=list)
    listings: list[tuple[FileInfo, pa.Schema | None]] = dataclasses.field(default_factory=list)
    pictures: NamedPictures = dataclasses.field(default_factory=NamedPictures)
    parquet: ParquetFiles = dataclasses.field(default_factory=ParquetFiles)

    @property
    def shards(self) -> list[FileInfo]:
        """The files that are shards by themselves."""
        return [*self.tars, *self.tfrecords, *(file for file, _ in self.parquet.images)]

    @property
    def read(self) -> list[str]:
        """URIs of the files to read, those that will be rejects included."""
        others = [*self.listings, *self.parquet.broken]
        return [file.uri for file in (*self.shards, *self.images, *(file for file, _ in others))]


def choose_files(source: Source, options: ReaderOptions, beside: Collection[str], skipping: Skipping) -> Chosen:
    """Choose the files of a source that will be read.

    Args:
        source: the files to look at.
        options: the format to take, and the settings of the readers.
        beside: the folders and the stems of tars that the inputs name; a Parquet file beside one may be its sidecar.
        skipping: decides what is left out.
    Raises:
        PlanError: if it holds two kinds of samples, or a Parquet file without a column that we use and nothing else.
    """
    chosen, wanted = _visible(source, skipping), options.input_format
    kinds, visible = chosen.kinds, chosen.visible
    if wanted in ("auto", "folder") and (sniffed := sniff(kinds["no extension"], visible)):
        kinds["no extension"] = [file for file in kinds["no extension"] if file.uri not in sniffed]
        kinds["image"] = [file for file in visible if file.uri in sniffed or kind_of(file.uri) == "image"]
    chosen.tars = kinds["tar"] if wanted in ("auto", "webdataset") else []
    chosen.tfrecords = kinds["tfrecord"] if wanted in ("auto", "tfrecord") else []
    if wanted in ("auto", "parquet", "listing"):
        chosen.parquet = sort_parquet(kinds["parquet"], visible, options, beside)
    shards = chosen.shards
    chosen.pictures = find_named_pictures(source.root, chosen.parquet, kinds["image"], options)
    chosen.images = kinds["image"] if wanted == "folder" or (wanted == "auto" and not shards) else []
    if wanted == "auto" and shards:
        strays = chosen.pictures.strays(kinds["image"])
        refuse_two_kinds(source.name, source.root, strays, chosen.tars, chosen.tfrecords, chosen.parquet)
    if wanted == "listing" or (wanted == "auto" and not shards and not chosen.images):
        chosen.listings = [*((file, None) for file in kinds["listing"]), *chosen.parquet.listings]
        chosen.listings = chosen.listings or [(file, None) for file in _json_listings(kinds, source.is_folder, wanted)]
    _refuse_others(chosen)
    return chosen


def _visible(source: Source, skipping: Skipping) -> Chosen:
    """Leave out what is hidden, excluded, a service folder or a dataset of this program."""
    root, met = source.root, source.below
    files, outputs = without_datasets(source.files)
    unlisted = [place for place in met.unlisted if not skipping.skips_below(place.uri[len(root) :].strip("/"))]
    hidden = [*met.skipped, *(place.uri for place in met.unlisted if place not in unlisted)]
    hidden = [folder for folder in hidden if not outputs or not folder.startswith(outputs)]
    visible, skipped = skipping.keep(files, root, source.pattern, hidden)
    return Chosen(source, visible, by_kind(visible), unlisted, skipped, len(outputs))


def _refuse_others(chosen: Chosen) -> None:
    """Refuse Parquet files without a column that we use, if there is nothing else, and shards with foreign names.

    Raises:
        PlanError: naming the file.
    """
    others = chosen.parquet.others
    if others and not chosen.shards and not chosen.images and not chosen.listings:
        file, schema = others[0]
        raise PlanError(
            f"{file.uri} has no column of image bytes, of URIs or of captions (columns: {', '.join(schema.names)}); "
            "name one with --image_column or --caption_column, or give only the files that have one"
        )
    for file in (*chosen.shards, *(file for file, _ in (*chosen.listings, *chosen.parquet.broken))):
        if text_of(file.uri) != file.uri:
            raise PlanError(f"{text_of(file.uri)}: the name of this shard is not UTF-8; rename it")


def _json_listings(kinds: dict[str, list[FileInfo]], is_folder: bool, wanted: str) -> list[FileInfo]:
    """Return the JSON files that may be listings. In a folder, one must be asked for, or nothing else be there."""
    alone = all(kind == "json" for kind, files in kinds.items() if files)
    return without_picture(kinds["json"], kinds["image"]) if alone or not is_folder or wanted == "listing" else []


def without_datasets(files: list[FileInfo]) -> tuple[list[FileInfo], tuple[str, ...]]:
    """Drop outputs of this program, which may lie below an input; return the other files, and the outputs' folders."""
    outputs = tuple(f"{posixpath.dirname(f.uri)}/" for f in files if posixpath.basename(f.uri) == "_dataset.json")
    return [file for file in files if not file.uri.startswith(outputs)] if outputs else files, outputs
