"""Decode image bytes to uint8 pixels with Pillow, exactly as the published preprocessing does. No torch."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from clip_transforms.clip.decoders import FORMATS, ImageError, failure, is_of_the_machine, set_up_decoders
from clip_transforms.clip.plain_jpeg import plain_jpeg

# The mean and standard deviation of CLIP's training images, in [0, 1], RGB (published `clip.py`).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
FAST_DECODE = ", JPEG decoded at reduced size"  # in the description of a preprocessing
EXIF_APPLIED = ", EXIF orientation applied"  # likewise
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own default: a quarter of a gibibyte at three bytes a pixel
EXIF_ORIENTATIONS = ("ignore", "apply")
RESIZES = ("shortest", "squash", "longest")
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_MAX_SIDE = 1 << 23  # pixels; beyond it Pillow's 32-bit counts overflow, which it reports as a MemoryError
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
# EXIF orientation → the step that turns the picture as a viewer shows it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps before the towers, for images and captions. The checkpoint decides them; the defaults are published.

    Attributes:
        side: r, the side of the square image in pixels.
        mean, std: the mean and standard deviation of each channel, RGB, for values in [0, 1]. Normalisation happens on
            the model's device.
        resize: `shortest` (shorter side to r, then a centre crop), `squash` (both sides to r), or `longest` (longer
            side to r, then padding with `fill`).
        interpolation: a key of INTERPOLATIONS.
        fill: the value of padding pixels, 0 to 255.
        context_length: the largest number of tokens in a caption, including start and end.
        fast_decode: whether to decode a JPEG at a reduced size: the smallest of 1, 1/2, 1/4 and 1/8 that is at least
            the resized size. This is faster and gives slightly different pixels. The user asks for it, not a
            checkpoint.
        exif_orientation: `ignore`, as published, or `apply`, which turns a picture as a viewer shows it, before the
            resize. The user asks for it, not a checkpoint.
    """

    side: int
    mean: tuple[float, float, float] = PIXEL_MEAN
    std: tuple[float, float, float] = PIXEL_STD
    resize: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0
    context_length: int = 77
    fast_decode: bool = False
    exif_orientation: str = "ignore"

    def __post_init__(self):
        """Refuse settings that no image could be prepared with."""
        for name, value, allowed in (
            ("resize mode", self.resize, RESIZES),
            ("interpolation", self.interpolation, tuple(INTERPOLATIONS)),
            ("EXIF orientation", self.exif_orientation, EXIF_ORIENTATIONS),
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
                    f"its {name} of pixels is {list(values)}, but it must be three finite numbers, for R, G and B"
                    + (", above 0" if name == "std" else "")
                )
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise ValueError(f"its fill colour is {self.fill!r}, but it must be a whole number from 0 to 255")

    def describe(self) -> str:
        """Return one line that names every setting that decides pixels and tokens."""
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
        asked = (FAST_DECODE if self.fast_decode else "") + (EXIF_APPLIED if self.exif_orientation == "apply" else "")
        return f"{step}, {self.interpolation} in Pillow{asked}, RGB, {scaling}; {self.context_length} tokens"


class DecodedImage(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: uint8 [3, r, r], RGB, not normalised.
        width, height: the size of the stored image in pixels, before any turn.
        orientation: the EXIF orientation that a viewer would apply, 2 to 8; 1 if the image is upright as it is stored.
        is_deep: whether the image has one channel of more than eight bits or of floating-point numbers. Pillow clips
            its values to 0 to 255; it does not scale them.
    """

    pixels: np.ndarray
    width: int
    height: int
    orientation: int = 1
    is_deep: bool = False


def decode_image(data: bytes, side: int) -> np.ndarray:
    """Decode one image to the pixels that the vision tower takes.

    Args:
        data: an encoded image: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or, with the extra [heic], HEIC. The bytes decide,
            not a file name.
        side: r, the model's `image_side`.
    Returns:
        uint8 [3, r, r], RGB, 0 to 255, not normalised: the shorter side is resized to r (bicubic), the centre is
        cropped, and the result is converted to RGB. An animation gives its first frame. EXIF orientation is ignored,
        as published.
    Raises:
        ImageError: if the bytes are in no such format, are damaged, or hold too many pixels.
    """
    return decode(data, Preprocessing(side)).pixels


def decode(
    data: bytes,
    preprocessing: Preprocessing,
    max_pixels: int = MAX_IMAGE_PIXELS,
    out: np.ndarray | None = None,
    pixels_of: Callable[[Image.Image], np.ndarray] = np.asarray,
) -> DecodedImage:
    """Decode one image with a checkpoint's preprocessing, and return its stored size too; see `decode_image`.

    Pillow prints no warnings from the first call on; see `set_up_decoders`.

    Args:
        data: the encoded image.
        preprocessing: the checkpoint's.
        max_pixels: the largest number of pixels, see below.
        out: uint8 [3, r, r], where the pixels are written; a new array without it. It is unchanged after an error.
        pixels_of: returns the pixels of an RGB image, uint8 [h, w, 3].
    Raises:
        TypeError: if `data` is not bytes but, say, a file name.
        ImageError: also if the stored image, or the resized image before its crop, has more than `max_pixels` pixels.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"an image is {data!r:.60}, but it must be encoded bytes: Path(name).read_bytes()")
    if len(data) == 0:
        raise ImageError("empty", "the image has no bytes")
    set_up_decoders()
    # Pillow's decoders raise nearly anything on damaged input (OSError, SyntaxError, ValueError, TypeError,
    # struct.error, zlib.error …). So these calls alone are guarded, but against every Exception.
    try:
        plain = None if preprocessing.fast_decode else plain_jpeg(bytes(data))
        image = plain or Image.open(io.BytesIO(data), formats=FORMATS)
        tile = _tile_size(image)
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels", str(error)) from error
    except Exception as error:
        raise failure(data, error) from error
    width, height = image.size
    resized = resized_size(width, height, preprocessing)
    sizes = {"stored": (width, height), "resized": resized, "in a tile": tile}
    if preprocessing.exif_orientation == "ignore":  # else it depends on the orientation, see `_to_square`
        sizes |= _half_resized(image, resized)
    _refuse_above(max_pixels, sizes)
    if max(width, height) > _MAX_SIDE:
        message = f"a side of {max(width, height)} pixels, but at most {_MAX_SIDE:,} are allowed"
        raise ImageError("too many pixels", message)
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    try:
        square, orientation = _to_square(image, resized, preprocessing, max_pixels)
        pixels = pixels_of(square)
    except ImageError:
        raise
    except Exception as error:
        raise failure(data, error) from error
    if out is None:
        out = np.empty((3, preprocessing.side, preprocessing.side), np.uint8)
    out[:] = pixels.transpose(2, 0, 1)
    return DecodedImage(out, width, height, orientation, is_deep)


def _half_resized(image: Image.Image, resized: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return the size between Pillow's two passes: it resizes the rows first, then the columns."""
    return {"resized in one direction": (resized[0], image.height)}


def _refuse_above(max_pixels: int, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an image if one of its sizes, by what it is the size of, has too many pixels."""
    for what, (width, height) in sizes.items():
        if width * height > max_pixels:
            message = f"{width} × {height} pixels {what}, but at most {max_pixels:,} are allowed"
            raise ImageError("too many pixels", message)


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and length of a TIFF's tiles in pixels: a tile is decoded whole, even for a small picture."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    width, length = (image.tag_v2.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return (width, length) if isinstance(width, int) and isinstance(length, int) else (0, 0)


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height in pixels after resizing, rounded as torchvision (`shortest`) or open_clip rounds."""
    side = preprocessing.side
    if preprocessing.resize == "squash":
        return side, side
    if preprocessing.resize == "longest":
        ratio = max(width, height) / side
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _to_square(
    image: Image.Image, resized: tuple[int, int], preprocessing: Preprocessing, max_pixels: int
) -> tuple[Image.Image, int]:
    """Return the resized and cropped image in RGB, and the EXIF orientation that the stored image has."""
    # Resize before converting to RGB, as the published preprocessing does. Pillow resizes palette images with nearest
    # neighbour, whatever filter is asked for, so the other order gives those images different embeddings.
    if preprocessing.fast_decode:
        # A turn swaps the sides of the resized image in the same way as those of the stored one.
        image.draft(None, resized)  # only affects JPEGs
    image.load()  # a PNG may have its EXIF behind its pixels
    orientation = _orientation(image)
    if preprocessing.exif_orientation == "apply":
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
            resized = resized if orientation < 5 else (resized[1], resized[0])
        _refuse_above(max_pixels, _half_resized(image, resized))
    if image.size != resized:
        image = image.resize(resized, INTERPOLATIONS[preprocessing.interpolation])
    side = preprocessing.side
    if preprocessing.resize == "longest":
        border = [(side - length + extra) // 2 for extra in (0, 1) for length in resized]  # left, top, right, bottom
        fill = preprocessing.fill
        image = ImageOps.expand(
            image, tuple(border), fill if len(image.getbands()) == 1 else (fill,) * len(image.getbands())
        )
    if image.size != (side, side):
        left, top = (int(round((length - side) / 2.0)) for length in image.size)  # Python's round: half to even
        image = image.crop((left, top, left + side, top + side))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image, orientation


def orientation_of_start(start: bytes) -> int:
    """Return the EXIF orientation that the first bytes of a JPEG tell; 1 if they tell none, or are no JPEG's."""
    set_up_decoders()
    try:
        return _orientation(Image.open(io.BytesIO(start), formats=("JPEG",)))
    except Exception as error:  # as in `decode`; more so, since the bytes may end within the headers
        if is_of_the_machine(error):
            raise
        return 1


def _orientation(image: Image.Image) -> int:
    """Return the orientation in a loaded image's EXIF; 1 if there is none, or none that makes sense.

    Pillow itself turns a TIFF while it loads it, and libheif a HEIC; afterwards they are upright.
    """
    data = image.info.get("exif")
    if not data or isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        orientation = exif.get(_ORIENTATION)
    except Exception as error:  # a viewer shows a picture with broken EXIF as it is stored
        if is_of_the_machine(error):
            raise
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1
