"""Read text files as lines of UTF-8: they may be compressed, in UTF-16, or end their lines with carriage returns."""

from __future__ import annotations

import bz2
import codecs
import collections
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from clip_transforms.shards.row_groups import DAMAGE
from clip_transforms.storage import is_of_the_machine

ZSTD = b"\x28\xb5\x2f\xfd"  # what a file that is compressed with zstd begins with
BLOCK = 1 << 20  # bytes that are read at a time
# Errors that damaged bytes cause, compressed or in UTF-16.
DAMAGED_TEXT = (*DAMAGE, EOFError, zlib.error, lzma.LZMAError)
# UTF-32 first: its mark begins with that of UTF-16.
_ENCODINGS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def open_zstd(file: Any) -> Any:
    """Open a file that is compressed with zstd."""
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


# What a compressed file begins with, and how it is opened.
_COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    ZSTD: open_zstd,
}


def read_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the text of a file as blocks of UTF-8, decompressed; bytes that are not UTF-8 stay as they are.

    If the file is damaged, all text before the damage is yielded first.
    """
    blocks = _decompressed(file)
    first = next(blocks, b"")
    encoding = next((name for mark, name in _ENCODINGS if first.startswith(mark)), None)
    if encoding is None:
        yield from itertools.chain([first], blocks)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in itertools.chain([first], blocks):
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    decoder.decode(b"", True)


class _Joined(io.RawIOBase):
    """A file whose beginning was read already."""

    def __init__(self, beginning: bytes, file: IO[bytes]):
        super().__init__()
        self._beginning, self._file = memoryview(beginning), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._beginning[: len(buffer)] or self._file.read(len(buffer))
        self._beginning = self._beginning[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _decompressed(file: IO[bytes]) -> Iterator[bytes]:
    first = file.read(BLOCK)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if first.startswith(magic)), None)
    if opener is None or (first.startswith(b"BZh") and first[4:8] != b"1AY&"):
        yield from itertools.chain([first] if first else [], iter(lambda: file.read(BLOCK), b""))
        return
    opened = opener(_Joined(first, file))
    read = getattr(opened, "read1", opened.read)  # `read` of Python's decompressors drops what comes before damage
    pieces: list[bytes] = []
    damage: Exception | None = None
    piece: bytes | None = None
    while piece != b"":
        try:
            piece = read(BLOCK)
        except DAMAGED_TEXT as error:
            damage, piece = error, b""
        pieces.append(piece)
        if piece == b"" or sum(map(len, pieces)) >= BLOCK:
            yield b"".join(pieces)
            pieces.clear()
    if damage is not None:
        raise damage


def read_head(file: IO[bytes]) -> bytes:
    """Return about the first BLOCK bytes of a file's text, or what comes before damage, without byte-order mark.

    Raises:
        DAMAGED_TEXT: if the damage is at the beginning.
    """
    head = b""
    try:
        for block in read_blocks(file):
            head += block
            if len(head) >= BLOCK:
                break
    except DAMAGED_TEXT as error:
        if not head or is_of_the_machine(error):
            raise
    return head.removeprefix(codecs.BOM_UTF8)


def split_lines(blocks: Iterable[bytes], end: bytes, limit: int) -> Iterator[bytes]:
    """Yield lines without ends and byte-order mark; of an overlong line, a beginning of more than `limit` bytes."""
    rest, skipping = b"", False
    first = True
    for block in itertools.chain(blocks, [None]):
        lines = (rest + (block or b"")).split(end)
        rest = lines.pop() if block is not None else b""
        for line in lines:
            if skipping:
                skipping = False
                continue
            yield line.removeprefix(codecs.BOM_UTF8) if first else line
            first = False
        if skipping:
            rest = b""
        elif len(rest) > limit:
            yield rest
            rest, skipping, first = b"", True, False


class Lines:
    """An iterator over lines that takes lines back."""

    def __init__(self, lines: Iterable[bytes]):
        """Take the lines in their order."""
        self._lines = iter(lines)
        self._back: collections.deque[bytes] = collections.deque()

    def __iter__(self) -> Iterator[bytes]:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next line."""
        return self._back.popleft() if self._back else next(self._lines)

    def put_back(self, lines: Sequence[bytes]) -> None:
        """Take back lines, which come next, in this order."""
        self._back.extendleft(reversed(lines))
