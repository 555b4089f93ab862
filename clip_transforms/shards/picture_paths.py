"""Find where the paths of pictures in Parquet files begin: at the file's own folder, or at one above it in the input.

`datasets` of Hugging Face takes such paths from where a script ran, which most often is the folder of the dataset, with
the Parquet files in `data/`.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.column_types import path_of_picture
from clip_transforms.shards.parquet_columns import image_column
from clip_transforms.shards.parquet_files import ParquetFiles
from clip_transforms.shards.parquet_images import paths_without_bytes
from clip_transforms.shards.places import column_of, type_at, values_at
from clip_transforms.shards.row_groups import DAMAGE
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.storage import FileInfo

_LOOKED_AT = 64  # first rows of a file, in which a path without bytes is looked for
_LEVELS = 3  # number of folders above an input that are looked into


@dataclasses.dataclass
class NamedPictures:
    """The pictures of an input that its Parquet files name.

    Attributes:
        bases: URI of a Parquet file → URI of the folder where its paths begin, if that is not its own.
        named: URIs of the pictures that are named.
    """

    bases: dict[str, str] = dataclasses.field(default_factory=dict)
    named: set[str] = dataclasses.field(default_factory=set)

    def strays(self, pictures: Iterable[FileInfo]) -> list[FileInfo]:
        """Return the pictures that lie in no folder with named ones."""
        folders = {posixpath.dirname(uri) for uri in self.named}
        return [picture for picture in pictures if posixpath.dirname(picture.uri) not in folders]


def find_named_pictures(
    root: str, parquet: ParquetFiles, pictures: Iterable[FileInfo], options: ReaderOptions
) -> NamedPictures:
    """Find the pictures of an input that its Parquet files name by path.

    Args:
        root: URI of the folder that was searched.
        parquet: the Parquet files in it.
        pictures: the pictures in it.
        options: names the column of images.
    """
    found, uris = NamedPictures(), {picture.uri for picture in pictures}
    for file, metadata in parquet.images if uris else ():
        place = _place_of_paths(parquet, file, metadata, options)
        first = next(_paths(file, metadata, place, _LOOKED_AT), None) if place else None
        folder = posixpath.dirname(file.uri)
        base = first and next((b for b in _folders(folder, root) if storage.join(b, first) in uris), None)
        if base and place:
            found.named |= uris & {storage.join(base, path) for path in _paths(file, metadata, place)}
            if base != folder:
                found.bases[file.uri] = base
    return found


def base_within(
    roots: Iterable[str], parquet: ParquetFiles, file: FileInfo, metadata: pq.FileMetaData, options: ReaderOptions
) -> str:
    """Find again where the paths of one file begin, if that is above its own folder; otherwise an empty text.

    Args:
        roots: folders that may be looked into, with all that lies below them.
        parquet: the file, as it was sorted.
        file: the file.
        metadata: its footer.
        options: names the column of images.
    """
    place, folder = _place_of_paths(parquet, file, metadata, options), posixpath.dirname(file.uri)
    first = next(_paths(file, metadata, place, _LOOKED_AT), None) if place else None
    around = [root.rstrip("/") for root in roots if f"{folder}/".startswith(f"{root.rstrip('/')}/")]
    if not first or not around:
        return ""
    base = next((b for b in _folders(folder, min(around, key=len)) if _exists(storage.join(b, first))), folder)
    return base if base != folder else ""


def paths_that_begin_above(
    root: str, parquet: ParquetFiles, bases: Collection[str], options: ReaderOptions
) -> list[str]:
    """Return a warning if the first path of a file names a picture outside of the input, and inside a folder above it.

    Args:
        root: URI of the folder that was searched.
        parquet: the Parquet files in it.
        bases: URIs of the files for which the folder was found in the input.
        options: names the column of images.
    """
    for file, metadata in parquet.images:
        place = _place_of_paths(parquet, file, metadata, options)
        if place is None or file.uri in bases:
            continue
        first = next(_paths(file, metadata, place, _LOOKED_AT), None)
        if first is None or _exists(storage.join(posixpath.dirname(file.uri), first)):
            return []
        above = list(_folders(posixpath.dirname(root), "/" if storage.is_local(root) else "scheme://x"))[:_LEVELS]
        base = next((folder for folder in above if _exists(storage.join(folder, first))), None)
        if base:
            return [
                f"warning: {file.uri}: the paths of its pictures, such as {first[:200]}, begin in {base}; give that "
                f"folder as --input, and --exclude or --input_format parquet if it holds more"
            ]
        return []
    return []


def _exists(uri: str) -> bool:
    """Return whether a file exists, and False where one may not look."""
    try:
        return storage.exists(uri)
    except OSError as error:
        if storage.is_of_the_machine(error):
            raise
        return False


def _place_of_paths(
    parquet: ParquetFiles, file: FileInfo, metadata: pq.FileMetaData, options: ReaderOptions
) -> str | None:
    """Return the place of a file's images if these may be paths."""
    schema = metadata.schema.to_arrow_schema()
    place = parquet.recognised.get(file.uri) or image_column(schema, options)
    return place if place and path_of_picture(type_at(schema, place) or pa.null()) else None


def _folders(folder: str, root: str) -> Iterator[str]:
    """Yield a folder and those above it, down to the root."""
    while len(folder) >= len(root) and folder != posixpath.dirname(folder):
        yield folder
        folder = posixpath.dirname(folder)


def _paths(file: FileInfo, metadata: pq.FileMetaData, place: str, limit: int | None = None) -> Iterator[str]:
    """Yield the relative paths of the pictures that have no bytes, in the first `limit` rows or in all."""
    rows = 0
    try:
        with storage.open_input(file.uri) as opened:
            parquet = pq.ParquetFile(opened, metadata=metadata, buffer_size=1 << 20)
            column = column_of(parquet.schema_arrow, place)
            groups = [
                group for group in range(metadata.num_row_groups) if _may_lack_bytes(metadata.row_group(group), place)
            ]
            for batch in parquet.iter_batches(_LOOKED_AT, groups, [column], use_threads=False):
                paths = paths_without_bytes(values_at(batch, place)) or ()
                yield from (path for path in paths if path and _is_relative(path))
                rows += batch.num_rows
                if limit is not None and rows >= limit:
                    return
    except DAMAGE as error:  # the reader will say what is damaged
        if storage.is_of_the_machine(error):
            raise


def _may_lack_bytes(group: pq.RowGroupMetaData, place: str) -> bool:
    """Return whether some bytes of a row group's pictures are null, as far as its statistics tell."""
    for column in range(group.num_columns):
        chunk = group.column(column)
        if chunk.path_in_schema == f"{place}.bytes" and chunk.statistics is not None:
            return not chunk.statistics.has_null_count or chunk.statistics.null_count > 0
    return True


def _is_relative(path: str) -> bool:
    return "://" not in path and not path.startswith("/") and ".." not in path.split("/")
