"""Tell the format of an encoded picture by its bytes, and whether the bytes end before the picture does. No Pillow."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

# Pillow's name of a format → its magic numbers, each as (offset, bytes) pairs.
_MAGIC = {
    "JPEG": [[(0, b"\xff\xd8\xff")]],
    "PNG": [[(0, b"\x89PNG")]],  # the rest of its signature shows damage by programs that copy text
    "WEBP": [[(0, b"RIFF"), (8, b"WEBP")]],
    "GIF": [[(0, b"GIF87a")], [(0, b"GIF89a")]],
    "BMP": [[(0, b"BM"), (6, bytes(4))]],
    "TIFF": [[(0, magic)] for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")],
}
# The major and the compatible brands of the ISO container that AVIF, HEIC and videos share.
_BRANDS = {"AVIF": {b"avif", b"avis"}, "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}}
# Formats that people meet under a picture's name and that are not decoded here, by their first bytes.
_OTHERS = (
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"8BP[SB]", "PSD (Photoshop)"),
    (rb"\0\0[\1\2]\0[^\0]\0", "ICO (icon)"),
    (rb"P[1-7fF][\s#]", "PPM (Netpbm)"),
    (rb"qoif", "QOI"),
    (rb"DDS ", "DDS"),
    (rb"icns", "ICNS (icon)"),
    (rb"II\xbc", "JPEG XR"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?R(ADIANCE|GBE)", "Radiance HDR"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"PK\x03\x04", "ZIP archive"),
    (rb"\x1f\x8b", "gzip"),
    (rb"RIFF.{4}AVI |\x1aE\xdf\xa3|.{4}ftyp", "video"),
    (rb"version https://git-lfs", "Git LFS pointer, whose file was never fetched"),
    (rb"(\xef\xbf\xbd)+(PNG|.?.?\0\x10JFIF|\xef)", "picture that a program turned into UTF-8 text"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b", "HTML page"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<(\?xml|!--|!doctype).{,4000}?)?<svg\b", "SVG"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "XML text"),
)
_OTHER_FORMATS = [(re.compile(pattern, re.DOTALL), name) for pattern, name in _OTHERS]
_SNIFFED = 8192  # bytes in which the pattern of an SVG may lie
_LEAST = 3  # bytes of a magic number that a file shorter than the number must have

HEIF_EXTENSIONS = ("heic", "heif", "hif")


def picture_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that the first bytes show, decodable here or not; None for other bytes.

    A file that is shorter than a magic number is of its format if it agrees with three bytes of the number or more.

    Args:
        data: the bytes of the file, at least its first 64 if it has so many.
    """
    for name, numbers in _MAGIC.items():
        if any(_begins(data, number) for number in numbers):
            return name
    if data[4:8] == b"ftyp" or (len(data) < 8 and data[4:] == b"ftyp"[: len(data) - 4] and len(data) >= 4 + _LEAST):
        length = int.from_bytes(data[:4], "big")
        brands = {bytes(data[8:12]), *(bytes(data[i : i + 4]) for i in range(16, min(length, len(data), 256), 4))}
        found = [name for name, known in _BRANDS.items() if brands & known]
        if found:
            return found[0]
        if len(data) < 12:  # the brand is cut off
            return next(
                (name for name, known in _BRANDS.items() if any(b.startswith(bytes(data[8:])) for b in known)), None
            )
    return None


def other_format(data: bytes) -> str | None:
    """Return the name of a format that is known, but is no picture's or is not decoded here; None if not known."""
    head = bytes(data[:_SNIFFED])
    return next((name for pattern, name in _OTHER_FORMATS if pattern.match(head)), None)


def _begins(data: bytes, number: list[tuple[int, bytes]]) -> bool:
    """Return whether the bytes agree with a magic number as far as they go."""
    matched = 0
    for offset, magic in number:
        there = data[offset : offset + len(magic)]
        if there != magic[: len(there)] or (len(there) < len(magic) and len(data) >= offset + len(magic)):
            return False
        matched += len(there)
    return matched >= min(_LEAST, sum(len(magic) for _, magic in number))


class Watched(io.BytesIO):
    """A file in memory that knows whether somebody asked it for bytes beyond its end."""

    ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, as BytesIO does."""
        found = super().read(size)
        self.ended |= size is not None and size > len(found)
        return found


def ends_early(data: bytes, format_: str | None) -> bool:
    """Return whether a file is shorter than its own container says. Only WebP, AVIF and HEIF say it at the start."""
    if format_ == "WEBP":
        return len(data) < 12 or 8 + int.from_bytes(data[4:8], "little") > len(data)
    if format_ in _BRANDS:
        kinds = list(_boxes(data))
        return None in kinds or b"meta" not in kinds
    return False


def _boxes(data: bytes) -> Iterator[bytes | None]:
    """Yield the kinds of an ISO container's boxes, and None for a box that the file does not hold to its end."""
    place = 0
    while place < len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), bytes(data[place + 4 : place + 8])
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if size == 0:  # to the end of the file
            size = len(data) - place
        if len(data) < place + max(size, header):
            yield None
            return
        yield kind
        if size < header:  # damaged
            return
        place += size
