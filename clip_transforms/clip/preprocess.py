"""Encoded image bytes → uint8 pixels, as the published preprocessing does it, in Pillow. No torch."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

# The mean and standard deviation of CLIP's training images, in [0, 1], RGB (published `clip.py`).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own default: a quarter of a gibibyte at three bytes a pixel
# Only these decoders are reachable, whatever else this Pillow was built with.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
RESIZES = ("shortest", "squash", "longest")
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
REASONS = ("empty", "unknown format", "too many pixels", "truncated", "damaged")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture and a caption before the towers; a checkpoint decides it. The defaults are published.

    Attributes:
        side: r, of the square of pixels.
        mean, std: of a channel in [0, 1], RGB; subtracted and divided by on the model's device.
        resize: `shortest` (shorter side to r, then a centre crop), `squash` (both sides to r), or `longest` (longer
            side to r, then padding with `fill`).
        interpolation: a key of INTERPOLATIONS.
        fill: value of padded pixels, 0 to 255.
        context_length: the most tokens that a caption may have, start and end included.
        fast_decode: whether a JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size that is not below the
            resized one, which is sooner done and gives slightly other pixels; no checkpoint asks for it, a person does.
    """

    side: int
    mean: tuple[float, float, float] = PIXEL_MEAN
    std: tuple[float, float, float] = PIXEL_STD
    resize: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0
    context_length: int = 77
    fast_decode: bool = False

    def __post_init__(self):
        """Refuse what no picture could be prepared by."""
        for name, value, allowed in (
            ("resize mode", self.resize, RESIZES),
            ("interpolation", self.interpolation, tuple(INTERPOLATIONS)),
        ):
            if value not in allowed:
                raise ValueError(f"its {name} is {value!r}, but it must be {' or '.join(allowed)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (
                len(values) != 3
                or not all(type(v) in (int, float) and math.isfinite(v) for v in values)
                or (name == "std" and min(values) <= 0)
            ):
                raise ValueError(
                    f"its {name} of pixels is {list(values)}, but it must be three numbers, for R, G and B"
                )
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise ValueError(f"its fill colour is {self.fill!r}, but it must be a whole number from 0 to 255")

    def describe(self) -> str:
        """One line, in which everything stands that decides pixels and tokens."""
        step = {
            "shortest": f"shorter side to {self.side}, centre crop",
            "squash": f"both sides to {self.side}",
            "longest": f"longer side to {self.side}, padded with {self.fill}",
        }[self.resize]
        scaling = (
            "published mean and std"
            if (self.mean, self.std) == (PIXEL_MEAN, PIXEL_STD)
            else f"mean {self.mean}, std {self.std}"
        )
        fast = ", JPEG decoded at reduced size" if self.fast_decode else ""
        return f"{step}, {self.interpolation} in Pillow{fast}, RGB, {scaling}; {self.context_length} tokens"


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
    return decode(data, Preprocessing(side)).pixels


def decode(data: bytes, preprocessing: Preprocessing, max_pixels: int = MAX_IMAGE_PIXELS) -> DecodedImage:
    """Decode one image as a checkpoint wants it, and keep its stored size; see `decode_image`.

    Raises:
        TypeError: if `data` is something else, such as a file's name.
        ImageError: also if the stored image, or the resized one before its crop, has more than `max_pixels` pixels.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"an image is {data!r:.60}, but its encoded bytes are wanted: Path(name).read_bytes()")
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
    resized = resized_size(width, height, preprocessing)
    for what, (w, h) in (("stored", (width, height)), ("resized", resized)):
        if w * h > max_pixels:
            raise ImageError("too many pixels", f"{w} × {h} pixels {what}, but at most {max_pixels:,} are taken")
    try:
        return DecodedImage(_to_pixels(image, resized, preprocessing), width, height)
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from error


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height in pixels after resizing: `shortest` rounds down as torchvision, `longest` as open_clip."""
    side = preprocessing.side
    if preprocessing.resize == "squash":
        return side, side
    if preprocessing.resize == "longest":
        ratio = max(width, height) / side
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _to_pixels(image: Image.Image, resized: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    # Resize before converting to RGB, as the published preprocessing does: Pillow resizes palette images with
    # nearest neighbour whatever filter is asked for, so the other order gives those images different embeddings.
    if preprocessing.fast_decode:
        image.draft(None, resized)  # does nothing where the file is no JPEG
    if image.size != resized:
        image = image.resize(resized, INTERPOLATIONS[preprocessing.interpolation])
    side = preprocessing.side
    if preprocessing.resize == "longest":
        border = [(side - length + extra) // 2 for extra in (0, 1) for length in resized]  # left, top, right, bottom
        fill = preprocessing.fill
        image = ImageOps.expand(
            image, tuple(border), fill if len(image.getbands()) == 1 else (fill,) * len(image.getbands())
        )
    left, top = (int(round((length - side) / 2.0)) for length in image.size)  # Python's round: half to even
    image = image.crop((left, top, left + side, top + side)).convert("RGB")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
