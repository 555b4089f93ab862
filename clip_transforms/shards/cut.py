"""Cut Parquet files and folders into units. The cuts depend on nothing but the source itself."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms.shards.batches import text_of
from clip_transforms.shards.beside import caption_extensions, same_stems, stem_of
from clip_transforms.shards.folder import FILES
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.unit import ReaderOptions, Unit, part_name
from clip_transforms.storage import FileInfo

# Constants, not flags: nobody should have to tune them, and a change would cut every existing dataset anew.
ROWS_PER_PARQUET_UNIT = 10_000
FOLDER_CUT_MODULUS = 2_048
MAX_FOLDER_UNIT = 16_384


def cut_parquet(file: FileInfo, metadata: pq.FileMetaData, image_column: str = "", base: str = "") -> Iterable[Unit]:
    """Cut a file into units of consecutive row groups with up to ROWS_PER_PARQUET_UNIT rows.

    A larger row group is a unit of its own.

    Args:
        file: the file.
        metadata: its footer.
        image_column: the place of its pictures, if it is not found by name.
        base: the folder where the paths of its pictures begin, if that is not its own.
    """
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    start, first_row = 0, 0
    while start < len(rows) or start == 0:
        stop, count = min(start + 1, len(rows)), sum(rows[start : start + 1])
        while stop < len(rows) and count + rows[stop] <= ROWS_PER_PARQUET_UNIT:
            count += rows[stop]
            stop += 1
        share = file.size * count // max(1, metadata.num_rows)
        part = part_name(file.uri, f"{start}-{stop}")
        stamp = f"{file.stamp}@{base}" if base else file.stamp  # found elsewhere, the pictures are other ones
        yield Unit(file.uri, file.uri, "parquet", start, stop, first_row, stamp, share, part, image_column, base)
        if stop == start:
            return  # a file without row groups
        start, first_row = stop, first_row + count


def cut_folder(
    root: str,
    source: str,
    name: str,
    images: list[FileInfo],
    visible: list[FileInfo],
    options: ReaderOptions,
) -> tuple[list[Unit], FolderSideFile]:
    """Cut sorted paths at those whose hash says so: a new picture then changes no unit but its own.

    Args:
        root: URI of the folder that the keys are relative to.
        source: name of the shard: the folder, or the glob that selects some of its pictures.
        name: name of the side file.
        images: sorted pictures of this source.
        visible: files that may be their captions and metadata.
        options: names the extension of the captions.
    Returns:
        The units, and the side file whose rows (`folder.FILES`) they are.
    """
    beside = {_lower_extension(file.uri): file for file in visible}
    units: list[Unit] = []
    keys: list[str] = []
    rows, stamps = [], []
    extensions = caption_extensions(options)
    others: dict[str, list[str]] = defaultdict(list)  # stem → extensions of files that are not read
    for file in visible:
        if (kind := kind_of(file.uri)).startswith("."):
            others[stem_of(file.uri)].append(kind)
    for image in images:
        stems = same_stems(stem_of(image.uri))
        texts = [found for stem in stems for e in extensions if (found := beside.get(f"{stem}.{e}"))]
        caption = next((text for text in texts if text.size), next(iter(texts), None))  # an empty one offers nothing
        metadata = next((found for stem in stems if (found := beside.get(f"{stem}.json"))), None)
        files = (image, caption, metadata)
        key = image.uri.removeprefix(root).lstrip("/")
        keys.append(text_of(key))
        near = None if caption else sorted(e for stem in stems for e in others.get(stem, ()))
        rows.append((keys[-1], *(file and os.fsencode(file.uri) for file in files), near))
        stamps.append(((key, *(file and file.stamp for file in files)), sum(file.size for file in files if file)))
    columns = zip(*rows, strict=True) if rows else [[]] * len(FILES)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, FILES, strict=True)], schema=FILES)
    start = 0
    for stop in range(1, len(rows) + 1):
        digest = hashlib.sha256(keys[stop - 1].encode()).digest()
        cut_here = int.from_bytes(digest[:8], "big") % FOLDER_CUT_MODULUS == 0
        if cut_here or stop - start == MAX_FOLDER_UNIT or stop == len(rows):
            shard = f"{source}#{keys[start - 1] if start else ''}"
            stamp = hashlib.sha256(repr([s for s, _ in stamps[start:stop]]).encode()).hexdigest()[:32]
            num_bytes = sum(size for _, size in stamps[start:stop])
            units.append(Unit(shard, name, "folder", start, stop, 0, stamp, num_bytes, part_name(shard, shard)))
            start = stop
    return units, FolderSideFile(table)


@dataclasses.dataclass(frozen=True)
class FolderSideFile:
    """The side file of a folder: the paths of its pictures, captions and metadata."""

    table: pa.Table
    schema = FILES

    def tables(self, wanted: Container[str]) -> Iterator[pa.Table]:
        """Yield the whole table, whichever units are wanted."""
        yield self.table


def _lower_extension(uri: str) -> str:
    stem, dot, extension = uri.rpartition(".")
    return f"{stem}{dot}{extension.lower()}"
