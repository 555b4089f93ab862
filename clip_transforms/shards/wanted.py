"""Pictures that are wanted from their sources again, and what becomes of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.shards.unit import ShardError

GONE, CHANGED = "vanished", "changed"
# Reasons why a picture is lost; whatever else a reader says of it means that it has changed.
LOST = (GONE, CHANGED, "unreadable", "not allowed", "not fetched")


class Wanted(NamedTuple):
    """A row of the embeddings whose picture is wanted: its `row`, `key` and `image_sha256`."""

    row: int
    key: str
    sha256: str


class Picture(NamedTuple):
    """What was found for a row of a shard.

    Attributes:
        row: its place in the shard.
        image: the encoded bytes; None if they are lost.
        lost: one of LOST; empty if they are not lost.
    """

    row: int
    image: bytes | None
    lost: str = ""


def checked(picture: Picture, wanted: Wanted) -> Picture:
    """Return a picture that was read if it is the wanted one, else one that is lost for one of the reasons in LOST."""
    if picture.image is None:
        return Picture(picture.row, None, picture.lost if picture.lost in LOST else CHANGED)
    same = hashlib.sha256(picture.image).hexdigest() == wanted.sha256
    return picture if same else Picture(picture.row, None, CHANGED)


def in_order(batches: Generator[pa.RecordBatch, None, None], wanted: Sequence[Wanted]) -> Iterator[Picture]:
    """Yield one Picture for each wanted row; what was read of other rows is passed over.

    Args:
        batches: of `schemas.samples`, in order; they are read no further than needed. A ShardError ends them.
        wanted: the rows, sorted.
    """
    left, reason = list(reversed(wanted)), CHANGED
    try:
        with contextlib.closing(batches):
            for picture in _pictures(batches):
                while left and left[-1].row < picture.row:  # the shard has no such row any more
                    yield Picture(left.pop().row, None, reason)
                if left and left[-1].row == picture.row:
                    yield checked(picture, left.pop())
                if not left:
                    return
    except ShardError as error:
        reason = error.reason
    while left:
        yield Picture(left.pop().row, None, reason)


def _pictures(batches: Iterator[pa.RecordBatch]) -> Iterator[Picture]:
    """Yield the pictures of batches of `schemas.samples`."""
    for batch in batches:
        reasons = pc.struct_field(batch.column("image_reject"), "reason").to_pylist()
        images = batch.column("image")
        for place, row in enumerate(batch.column("row").to_pylist()):
            yield Picture(row, images[place].as_py(), reasons[place] or "")
