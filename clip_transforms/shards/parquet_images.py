"""Take encoded pictures out of the columns of a Parquet file, and fetch those that a column only names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.shards.batches import MAX_BATCH_BYTES, too_large, writable
from clip_transforms.shards.column_types import path_of_picture
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.fetch import shown
from clip_transforms.shards.fetch_ahead import fetch_in_order
from clip_transforms.shards.inline import is_inline
from clip_transforms.shards.places import is_list, values_at
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import READ_REJECT

_HEAD = 64  # bytes that tell base64


class Images(NamedTuple):
    """The images of some rows.

    Attributes:
        data: binary, the encoded images; null where there is none.
        rejects: READ_REJECT, of the images that are offered and cannot be read.
        uris: string, the URIs of images that were fetched; null elsewhere.
    """

    data: pa.Array
    rejects: pa.Array
    uris: pa.Array

    @property
    def offered(self) -> pa.Array:
        """Whether each row offers an image."""
        return pc.or_(self.data.is_valid(), self.rejects.is_valid())


class ImageColumn:
    """Reads the images of a file's batches, and fetches those that have a path instead of bytes."""

    def __init__(self, place: str, folder: str, options: ReaderOptions):
        """Fetch nothing yet.

        Args:
            place: the place of the images in each batch.
            folder: URI of the folder that paths are relative to.
            options: the limit, and the places that paths may point to.
        """
        self._place, self._options = place, options
        self._is_base64: bool | None = None  # not known before the first value
        self._fence = Fence(folder, options.allow_uri)

    def pieces(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, Images]]:
        """Yield ranges [start, stop) of a batch's rows, with their images. A batch of bytes is one range.

        Pictures that are fetched make a range of their own when they have MAX_BATCH_BYTES.
        """
        column = values_at(batch, self._place)
        data, paths = self._without_base64(image_bytes(column), paths_without_bytes(column))
        if paths is None:
            yield 0, batch.num_rows, _within_limit(data, self._options)
            return
        start = num_bytes = 0
        found: list[dict[str, Any]] = []
        sizes = pc.fill_null(pc.binary_length(data), 0).to_pylist()
        with contextlib.closing(
            fetch_in_order(zip(zip(sizes, paths, strict=True), paths, strict=True), self._fence, self._options)
        ) as rows:
            for (size, path), fields in rows:
                found.append(fields | {"uri": path and writable(shown(path))})
                num_bytes += len(fields.get("image") or b"") + size
                if num_bytes >= MAX_BATCH_BYTES or start + len(found) == batch.num_rows:
                    yield start, start + len(found), self._joined(data.slice(start, len(found)), found)
                    start, num_bytes, found = start + len(found), 0, []

    def _without_base64(
        self, data: pa.Array, paths: list[str | None] | None
    ) -> tuple[pa.Array, list[str | None] | None]:
        """Turn bytes that are a picture's base64, or a `data:` URI, into paths; these are fetched by decoding them.

        The first value that is not null decides whether the others are looked at.
        """
        if self._is_base64 is None:
            first = next((value for value in data if value.is_valid), None)
            self._is_base64 = (
                None if first is None else is_inline(first.as_buffer()[:_HEAD].to_pybytes().decode("latin-1"))
            )
        if not self._is_base64:
            return data, paths
        found = (value and value.decode("latin-1") for value in data.to_pylist())
        texts = [text if text and is_inline(text) else None for text in found]
        is_text = pa.array([text is not None for text in texts])
        both = [text or path for text, path in zip(texts, paths or [None] * len(texts), strict=True)]
        return pc.if_else(is_text, None, data), both if any(both) else None

    def _joined(self, data: pa.Array, found: list[dict[str, Any]]) -> Images:
        """Put the fetched images beside those that the file holds."""
        images = _within_limit(data, self._options)
        is_fetched = pa.array([fields["uri"] is not None for fields in found])
        fetched = [fields for fields in found if fields["uri"] is not None]
        return Images(
            pc.replace_with_mask(images.data, is_fetched, pa.array([f.get("image") for f in fetched], pa.binary())),
            pa.array(
                [
                    fields.get("image_reject") or reject
                    for fields, reject in zip(found, images.rejects.to_pylist(), strict=True)
                ],
                READ_REJECT,
            ),
            pa.array([fields["uri"] for fields in found], pa.string()),
        )


def image_bytes(array: pa.Array) -> pa.Array:
    """Return the encoded pictures of a column as binary, whatever its type; null where there is none."""
    if pa.types.is_struct(array.type):
        place = array.type.get_field_index("bytes")
        return pa.nulls(len(array), pa.binary()) if place < 0 else image_bytes(pc.struct_field(array, [place]))
    if is_list(array.type):
        return _joined_bytes(array)
    return array.cast(pa.binary())


def _joined_bytes(array: pa.Array) -> pa.Array:
    """Return lists of bytes as binary, without a copy."""
    if pa.types.is_fixed_size_list(array.type):
        starts = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int32) * array.type.list_size
    else:
        starts = array.offsets.to_numpy()
    data = array.values.buffers()[1]
    starts = starts + array.values.offset
    type_ = pa.large_binary() if starts.dtype == np.int64 else pa.binary()
    buffers = [array.is_valid().buffers()[1], pa.py_buffer(np.ascontiguousarray(starts)), data]
    return pa.Array.from_buffers(type_, len(array), buffers).cast(pa.binary())


def paths_without_bytes(column: pa.Array) -> list[str | None] | None:
    """Return the path of each picture whose bytes are null; None if there is no such picture."""
    name = path_of_picture(column.type)
    if name is None:
        return None
    paths = pc.struct_field(column, [column.type.get_field_index(name)]).cast(pa.string())
    wanted = pc.and_(paths.is_valid(), image_bytes(column).is_null())
    if not pc.any(wanted).as_py():
        return None
    found = [path and path.strip() or None for path in pc.if_else(wanted, paths, None).to_pylist()]
    return found if any(found) else None


def _within_limit(data: pa.Array, options: ReaderOptions) -> Images:
    """Return the images without those over the limit, and the rejects of those."""
    sizes, limit = pc.binary_length(data), options.max_image_bytes
    within = pc.less_equal(sizes, limit)
    uris = pa.nulls(len(data), pa.string())
    if pc.all(within).as_py() is not False:  # null where there is no image
        return Images(data, pa.nulls(len(data), READ_REJECT), uris)
    rejects = [
        too_large("image", size, limit)["image_reject"] if size is not None and size > limit else None
        for size in sizes.to_pylist()
    ]
    return Images(pc.if_else(within, data, None), pa.array(rejects, READ_REJECT), uris)
