"""Rows that a report shows, with small pictures: made part by part, and carried from part to page in files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.pages.thumbnails import SIDE, SMALL, thumbnail

COLUMNS = ("key", "shard", "row", "caption", "clip_score", "width", "image_sha256")
# [(row, key, image_sha256)] → for each of them its row, its picture, and if there is none, the reason.
ReadPictures = Callable[[Sequence[tuple[int, str, str]]], Iterator[tuple[int, "bytes | None", str]]]
NO_PICTURE, NOT_READ = "no picture", "left out"
NOT_LOST = ("", NO_PICTURE, NOT_READ)


@dataclasses.dataclass(frozen=True)
class Looks:
    """What is looked at in the rows of a part.

    Attributes:
        shown: bool [n], rows with a picture on a sheet.
        mapped: bool [n], rows on the map.
        small: bool [n], rows on the map with a picture.
        ranks: uint64 [n], random numbers that say which rows come first on the map.
    """

    shown: np.ndarray
    mapped: np.ndarray
    small: np.ndarray
    ranks: np.ndarray


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """How pictures are decoded: under the limits that they were embedded under.

    Attributes:
        max_pixels: the most pixels of a picture.
        exif_orientation: `ignore` or `apply`.
    """

    max_pixels: int
    exif_orientation: str

    def of(self, data: bytes, side: int) -> tuple[bytes | None, str]:
        """Return a small picture, or None and the reason."""
        return thumbnail(data, side, self.max_pixels, self.exif_orientation)


def look_at(table: pa.Table, looks: Looks, vectors: str, thumbnails: Thumbnails, read: ReadPictures | None) -> pa.Table:
    """Take the rows of a part that a report shows.

    Args:
        table: COLUMNS, of each taxonomy `label` and `probability`, and the column `vectors` if rows are mapped.
        looks: which rows, and what of them.
        vectors: name of the column of embeddings.
        thumbnails: how pictures are decoded.
        read: reads pictures from their source; None leaves all of them out.
    Returns:
        The rows, each with `image` and `small` (encoded, or null), `lost` (why there is no picture), `shown`, `rank`
        (null unless the row is on the map) and `vector`.
    """
    places = np.flatnonzero(looks.shown | looks.mapped)
    rows = table.take(places)
    images, smalls, lost = [], [], []
    for place, image, reason in _pictures(rows, (looks.shown | looks.small)[places], read):
        on_sheet, on_map = looks.shown[places[place]], looks.small[places[place]]
        big, why = thumbnails.of(image, SIDE) if image and on_sheet else (None, reason)
        little, why_little = thumbnails.of(image, SMALL) if image and on_map else (None, "")
        images.append(big)
        smalls.append(little)
        lost.append(why or why_little)
    mapped = looks.mapped[places]
    ranks = pa.array(looks.ranks[places], pa.uint64(), mask=~mapped)
    made = {
        "image": pa.array(images, pa.binary()),
        "small": pa.array(smalls, pa.binary()),
        "lost": pa.array(lost, pa.string()),
        "shown": pa.array(looks.shown[places]),
        "rank": ranks,
    }
    names = [name for name in table.column_names if name != vectors]
    columns = {name: rows.column(name) for name in names} | made
    return pa.table(columns | ({"vector": _masked(rows.column(vectors), mapped)} if mapped.any() else {}))


def _pictures(rows: pa.Table, wanted: np.ndarray, read: ReadPictures | None) -> Iterator[tuple[int, bytes | None, str]]:
    """Yield for each row its place, its picture, and if there is none, the reason."""
    named = zip(*(rows.column(name).to_pylist() for name in ("row", "key", "image_sha256", "width")), strict=True)
    # A picture that could be decoded has a width.
    there = [None if width is None or sha256 is None else (row, key, sha256) for row, key, sha256, width in named]
    looked_for = wanted if read else np.zeros(len(there), bool)
    found = read([one for one, is_wanted in zip(there, wanted, strict=True) if one and is_wanted]) if read else iter(())
    for place, (one, is_looked_for) in enumerate(zip(there, looked_for.tolist(), strict=True)):
        if one is None or not is_looked_for:
            yield place, None, NOT_READ if one else NO_PICTURE
        else:
            _, image, lost = next(found)
            yield place, image, lost


def _masked(vectors: pa.ChunkedArray, keep: np.ndarray) -> pa.ChunkedArray:
    values = pc.if_else(pa.array(keep), vectors.cast(pa.list_(vectors.type.value_type)), None)
    return values.cast(pa.list_(pa.float32()))


def write_looked(uri: str, looked: pa.Table, scratch: str) -> None:
    """Write the rows of a part into a file; rows on a map have their vectors with them."""
    sink = io.BytesIO()
    pq.write_table(looked, sink)
    storage.write_bytes(uri, sink.getvalue(), scratch)


def read_looked(uris: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files that `write_looked` wrote, as column → value; a vector is float32 [d] or None."""
    for uri in uris:
        with storage.open_input(uri) as file:
            table = pq.ParquetFile(file).read(use_threads=False)
        if "vector" not in table.column_names:
            table = table.append_column("vector", pa.nulls(table.num_rows))
        vectors = table.column("vector").to_numpy()
        for row, vector in zip(table.drop_columns("vector").to_pylist(), vectors, strict=True):
            yield row | {"vector": vector if row["rank"] is not None else None}


def read_groups(uri: str) -> pa.Table:
    """Read a file of groups of duplicates."""
    with storage.open_input(uri) as file:
        return pq.ParquetFile(file).read(["group", "shard", "row", "kept", "similarity"], use_threads=False)
