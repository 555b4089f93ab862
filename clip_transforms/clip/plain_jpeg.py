"""Open a plain JPEG without the work that Pillow's Python does for every one: its headers tell the size and no more.

Plain is a small JPEG as image libraries write it for training sets: gray or YCbCr of 8 bits, with the headers that the
decoder needs and JFIF's. The interpreter's lock is held for a third of the time that `Image.open` and `load` take.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageFile

# Markers, as ITU T.81 table B.1 has them.
_START, _SCAN, _JFIF = b"\xff\xd8", 0xFFDA, 0xFFE0
_TABLES, _QUANTIZATION = (0xFFC4, 0xFFDD, 0xFFFE), 0xFFDB  # Huffman codes, the restart interval and comments; DQT
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended and progressive, with Huffman codes
_MODES = {1: "L", 3: "RGB"}  # by the number of components
_MOST_PIXELS = 1 << 22  # opening a larger picture costs little beside decoding it


class PlainJpeg(Image.Image):
    """A JPEG that is decoded when it is loaded, like one that `Image.open` returns."""

    def __init__(self, data: bytes, mode: str, size: tuple[int, int]):
        """Decode nothing yet."""
        super().__init__()
        self._mode, self._size = mode, size
        self._waiting: bytes | None = data

    def load(self) -> Any:
        """Decode it with Pillow's decoder, in the one call that Pillow would make.

        Raises:
            Exception: what Pillow raises for a JPEG that is cut or damaged.
        """
        if self._waiting is not None:
            self.im = _decoded(self._waiting, self.mode, self.size) or _opened(self._waiting)
            self._waiting = None
        return super().load()


def plain_jpeg(data: bytes) -> PlainJpeg | None:
    """Return a picture if it is a plain JPEG whose headers are whole; any other is None, and Pillow's to open.

    Args:
        data: an encoded image of any format.
    """
    if data[:2] != _START or len(data) > ImageFile.MAXBLOCK:  # Pillow hands its decoder so many bytes at once
        return None
    place, found, end = 2, None, len(data)
    while place + 4 <= end:
        marker = data[place] << 8 | data[place + 1]
        start, place = place + 4, place + 2 + (data[place + 2] << 8 | data[place + 3])
        length = place - start
        if place > end:
            return None
        if marker == _SCAN:
            return found and PlainJpeg(data, *found)
        if marker in _FRAMES:
            if found or length < 6 or data[start] != 8 or length != 6 + 3 * data[start + 5]:
                return None
            height, width = (data[at] << 8 | data[at + 1] for at in (start + 1, start + 3))
            mode = _MODES.get(data[start + 5])
            if mode is None or not 0 < width * height <= _MOST_PIXELS:
                return None
            found = mode, (width, height)
        elif marker == _QUANTIZATION:
            if length % 65 or any(data[at] > 15 for at in range(start, place, 65)):  # tables of 64 numbers of 8 bits
                return None
        elif marker not in _TABLES and not (marker == _JFIF and length >= 14):
            return None
    return None


def _decoded(data: bytes, mode: str, size: tuple[int, int]) -> Any:
    """Return the picture's pixels as Pillow holds them; None if it cannot be decoded, or Pillow has become another."""
    pixels = Image.core.new(mode, size)
    try:
        decoder = Image.core.jpeg_decoder(mode, mode, "")
    except (AttributeError, TypeError):  # it is no part of what Pillow promises
        return None
    try:
        decoder.setimage(pixels, (0, 0, *size))
        consumed, error = decoder.decode(data)
    finally:
        decoder.cleanup()
    return pixels if consumed < 0 and error >= 0 else None  # -1: it came to the picture's end


def _opened(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.load()
    return image.im
