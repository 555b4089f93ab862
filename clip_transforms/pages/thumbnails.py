"""Encoded pictures → small ones for a page."""

from __future__ import annotations

import io

from PIL import Image

from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.preprocess import Preprocessing, decode

SIDE, SMALL = 128, 64  # pixels of a picture on a sheet, and on a map; whole blocks of WebP, so that none bleeds
_MOST_BYTES = {SIDE: 6_000, SMALL: 1_500}  # a page of them stays below 5 MB
_QUALITIES = (75, 50, 25, 5)


def thumbnail(data: bytes, side: int, max_pixels: int, exif_orientation: str) -> tuple[bytes | None, str]:
    """Decode a picture under the limits of its dataset and encode its central square as WebP.

    Args:
        data: the encoded picture.
        side: SIDE or SMALL, pixels of the square.
        max_pixels: the most pixels of the picture, as stored and as resized.
        exif_orientation: what the dataset does with EXIF orientation: `ignore` or `apply`.
    Returns:
        The encoded square and an empty text, or None and the reason why there is none.
    """
    try:
        pixels = decode(data, Preprocessing(side, exif_orientation=exif_orientation), max_pixels).pixels
    except ImageError as error:
        return None, error.reason
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= _MOST_BYTES[side]:
            break
    return buffer.getvalue(), ""


def sheet(pictures: list[bytes], columns: int) -> bytes:
    """Put small pictures on one sheet, row by row, encoded as WebP: one file takes less room than many.

    Args:
        pictures: encoded squares of SMALL pixels; at least one.
        columns: pictures in a row.
    """
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (SMALL * min(columns, len(pictures)), SMALL * rows))
    for place, data in enumerate(pictures):
        whole.paste(Image.open(io.BytesIO(data)), (place % columns * SMALL, place // columns * SMALL))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", quality=60, method=4)
    return buffer.getvalue()
