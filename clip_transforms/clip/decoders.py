"""Pillow's decoders: which of them are reachable, and the true reason of a failure."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
import warnings

# Pillow would import a decoder at the first picture that needs it. If the process had no free descriptor at that
# moment, Pillow would go on without the decoder, and its pictures would be rejected as of an unknown format.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from clip_transforms import storage
from clip_transforms.clip.picture_formats import Watched, ends_early, other_format, picture_format

try:
    import pillow_heif  # the extra [heic]
except ModuleNotFoundError:
    HAS_HEIF = False
else:  # a thread per picture, since pictures are decoded in a pool; the main image alone, never a thumbnail
    HAS_HEIF = True
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

# Only these decoders are reachable, whatever else this Pillow was built with.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *(("HEIF",) if HAS_HEIF else ()))
HEIC_EXTRA = "HEIC needs the extra [heic]: pip install pillow-heif"
REASONS = ("empty", "unknown format", "too many pixels", "truncated", "damaged")
_ENDS_EARLY = re.compile(r"(?i)truncated(?! \w+ chunk)")  # a PNG's chunk may be short in the middle of a whole file
_CODEC_OUT_OF_MEMORY = ("decoder error -9", "out of memory when reading image file")  # Pillow says either


Image.preinit()  # imports the rest of the common decoders, which Pillow would import at the first picture
# Texts and colour profiles in a PNG change no pixel, but Pillow refuses a picture for one above a mebibyte. All of them
# together stay limited to 64 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@functools.lru_cache(maxsize=1)
def set_up_decoders() -> None:
    """Set up Pillow's decoders for this process: one thread per picture, and no warnings on the terminal.

    Warnings are not needed: a picture that cannot be decoded is a reject with a message of its own.
    """
    # Pictures are decoded in a pool already. libavif would start a thread per core for each picture, and would report a
    # damaged picture if no thread can be started.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    # libtiff itself writes to file descriptor 2, and Pillow cannot switch this off. A handler of NULL silences libtiff.
    with contextlib.suppress(OSError, AttributeError):  # this Pillow has no libtiff, or hides its symbols
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            handler(None)


class ImageError(ValueError):
    """An image cannot be used.

    Attributes:
        reason: one of REASONS.
    """

    def __init__(self, reason: str, message: str):
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        """Pickle both arguments; by default an exception is made again from its message alone."""
        return type(self), (self.reason, str(self))


def failure(data: bytes, error: Exception) -> ImageError:
    """Return the reject that a decoder's error makes.

    Raises:
        Exception: `error` itself, if the machine failed and not the picture.
    """
    if is_of_the_machine(error):
        raise error
    format_ = picture_format(data)
    if isinstance(error, Image.UnidentifiedImageError) and format_ not in FORMATS:
        return ImageError("unknown format", _unknown(data, format_))
    own, ended = _opened_again(data, format_) if format_ and format_ in FORMATS else (None, False)
    if isinstance(error, Image.UnidentifiedImageError):
        error = own or ValueError(f"Pillow does not recognise it as {format_}")
    is_cut = ended or _ENDS_EARLY.search(str(error)) or ends_early(data, format_)
    return ImageError("truncated" if is_cut else "damaged", f"{type(error).__name__}: {error}")


def _unknown(data: bytes, format_: str | None) -> str:
    if format_ == "HEIF":  # only if it cannot be decoded here
        return HEIC_EXTRA
    known = f"none of {', '.join(FORMATS)}"
    return f"{other}, {known}" if (other := other_format(data)) else f"{known}: starts with {bytes(data[:12])!r}"


def _opened_again(data: bytes, format_: str) -> tuple[Exception | None, bool]:
    """Return the error of a format's own decoder, which `Image.open` swallows, and whether it met the file's end."""
    file = Watched(data)
    try:
        Image.OPEN[format_][0](file, "")
    except Exception as error:
        if is_of_the_machine(error):
            raise
        return error, file.ended
    return None, file.ended


def is_of_the_machine(error: Exception) -> bool:
    """Return whether the machine, not the picture, made Pillow fail.

    A picture whose sizes alone would make Pillow raise a MemoryError is refused before it is decoded. The bytes are in
    memory, so they cannot cause a failed import or an error with a number of the operating system.
    """
    return (
        storage.is_of_the_machine(error)
        or isinstance(error, ImportError)
        or (isinstance(error, OSError) and error.errno is not None)
        or str(error) in _CODEC_OUT_OF_MEMORY
    )
