"""Pictures that are wanted from their sources again, and what becomes of them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

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
