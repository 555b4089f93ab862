"""Encoded image bytes → uint8 pixels, as the published preprocessing does it, in Pillow. No torch."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

# The mean and standard deviation of CLIP's training images, in [0, 1], RGB (published `clip.py`).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own default: a quarter of a gibibyte at three bytes a pixel
# Only these decoders are reachable, whatever else this Pillow was built with.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
REASONS = ("empty", "unknown format", "too many pixels", "truncated", "damaged")


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: one of REASONS.
    """

    def __init__(self, reason: str, message: str):
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason


class DecodedImage(NamedTuple):
    """Pixels uint8 [3, r, r], RGB, not normalised, and the size of the stored image in pixels."""

    pixels: np.ndarray
    width: int
    height: int


def decode_image(data: bytes, side: int) -> np.ndarray:
    """Decode one image to what the vision tower takes.

    Args:
        data: an encoded image (JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF; the bytes decide, not a name).
        side: r, the model's `image_side`.
    Returns:
        uint8 [3, r, r], RGB, 0 to 255, not normalised: shorter side to r (bicubic), centre crop, RGB. Of an
        animation the first frame. EXIF orientation is ignored, as published.
    Raises:
        ImageError: if the bytes are not such an image, are damaged, or too large.
    """
    return decode(data, side).pixels


def decode(data: bytes, side: int, max_pixels: int = MAX_IMAGE_PIXELS) -> DecodedImage:
    """Decode one image and keep its stored size; see `decode_image`.

    Raises:
        ImageError: also if the stored image, or the resized one before its crop, has more than `max_pixels` pixels.
    """
    if len(data) == 0:
        raise ImageError("empty", "the image has no bytes")
    # Pillow's decoders raise nearly anything on damaged input (OSError, SyntaxError, ValueError, TypeError,
    # struct.error, zlib.error, MemoryError …), so exactly these calls are guarded, and by nothing narrower.
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("unknown format", f"none of {', '.join(FORMATS)}: starts with {data[:12]!r}") from error
    except Exception as error:
        raise ImageError("damaged", f"{type(error).__name__}: {error}") from error
    width, height = image.size
    resized = resized_size(width, height, side)
    for what, (w, h) in (("stored", (width, height)), ("resized", resized)):
        if w * h > max_pixels:
            raise ImageError("too many pixels", f"{w} × {h} pixels {what}, but at most {max_pixels:,} are taken")
    try:
        return DecodedImage(_to_pixels(image, resized, side), width, height)
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from error


def resized_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height in pixels after the shorter side became `side`, the longer one rounded down."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _to_pixels(image: Image.Image, resized: tuple[int, int], side: int) -> np.ndarray:
    # Resize before converting to RGB, as the published preprocessing does: Pillow resizes palette images with
    # nearest neighbour whatever filter is asked for, so the other order gives those images different embeddings.
    image = image.resize(resized, Image.Resampling.BICUBIC) if image.size != resized else image
    left, top = (int(round((length - side) / 2.0)) for length in resized)  # Python's round: half to even
    image = image.crop((left, top, left + side, top + side)).convert("RGB")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
