"""Encoded pictures → small ones for a page."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.preprocess import Preprocessing, decode, resized_size

# Pixels of a picture on a sheet, on a map, and on a page that loads each; whole blocks of WebP, so that none bleeds.
SIDE, SMALL, LARGE = 128, 64, 256
WHOLE = 1_024  # the longer side of a picture that is shown alone
_MOST_BYTES = {SIDE: 6_000, SMALL: 1_500, LARGE: 40_000}  # a page of the smaller ones stays below 5 MB
_MOST_WHOLE = 400_000
_QUALITIES = (75, 50, 25, 5)


def thumbnail(
    data: bytes, side: int, max_pixels: int, exif_orientation: str, fast_decode: bool = False
) -> tuple[bytes | None, str]:
    """Decode a picture under the limits of its dataset and encode its central square as WebP.

    Args:
        data: the encoded picture.
        side: SIDE, SMALL or LARGE, pixels of the square.
        max_pixels: the most pixels of the picture, as stored and as resized.
        exif_orientation: what the dataset does with EXIF orientation: `ignore` or `apply`.
        fast_decode: whether to decode a JPEG at a reduced size, which takes a fifth of the time for a photograph.
    Returns:
        The encoded square and an empty text, or None and the reason why there is none.
    """
    try:
        how = Preprocessing(side, exif_orientation=exif_orientation, fast_decode=fast_decode)
        pixels = decode(data, how, max_pixels).pixels
    except ImageError as error:
        return None, error.reason
    return _encoded(pixels, _MOST_BYTES[side]), ""


def whole_picture(data: bytes, max_pixels: int, exif_orientation: str) -> tuple[bytes | None, str]:
    """Decode a picture in the same way, a JPEG at a reduced size, and encode all of it, at most WHOLE pixels long."""
    how = Preprocessing(WHOLE, resize="longest", exif_orientation=exif_orientation, fast_decode=True)
    try:
        found = decode(data, how, max_pixels)
        turned = exif_orientation == "apply" and found.orientation >= 5
        width, height = (found.height, found.width) if turned else (found.width, found.height)
        if max(width, height) < WHOLE:  # a small picture is not made larger
            how = dataclasses.replace(how, side=max(width, height))
            found = decode(data, how, max_pixels)
    except ImageError as error:
        return None, error.reason
    # Without the padding that makes a square of it.
    width, height = (max(1, length) for length in resized_size(width, height, how))
    left, top = (how.side - width) // 2, (how.side - height) // 2
    return _encoded(found.pixels[:, top : top + height, left : left + width], _MOST_WHOLE), ""


def _encoded(pixels: np.ndarray, most: int) -> bytes:
    """Encode pixels [3, h, w] as WebP, in the best quality that stays below so many bytes."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


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
