"""Read the JSON that a part says of itself, from the last bytes of its file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from schemas.provenance import FOOTER_KEY

_TAIL_BYTES = 32 << 10  # most footers fit
_MAGIC = b"PAR1"
_ENTRY = b"\x18" + bytes([len(FOOTER_KEY)]) + FOOTER_KEY + b"\x18"  # Thrift: a text of this length, then a second text


def footer_text(uri: str) -> bytes | None:
    """Return the JSON that a part holds under our key; None if the file is missing, not whole or not one of ours.

    Raises:
        OSError: if storage fails, so that it cannot be told.
    """
    try:
        tail = _tail(uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    try:
        return tail and (_own_entry(tail) or (pq.read_metadata(pa.BufferReader(tail)).metadata or {}).get(FOOTER_KEY))
    except (OSError, ValueError, pa.ArrowException):  # the bytes in memory cannot be parsed
        return None


def _tail(uri: str) -> bytes | None:
    """Read the end of a Parquet file, with all of its footer; None if the file is not whole."""
    wanted = _TAIL_BYTES
    while True:  # twice at most, unless the file is replaced meanwhile
        tail, size = storage.read_end(uri, wanted)
        length = int.from_bytes(tail[-8:-4], "little")
        if tail[-4:] != _MAGIC or length + len(_MAGIC) + 8 > size:
            return None
        if length + 8 <= len(tail):
            return tail
        wanted = length + 8


def _own_entry(tail: bytes) -> bytes | None:
    """Find the value of our key in the footer of a Parquet file; None if the key is not there.

    With a hundred thousand parts, most of the planning time would go into pyarrow's parsing of the column metadata.
    This function searches for the key's entry in Thrift's compact encoding, from the end of the file. The search is
    safe: no user data follows the entries, and the entries hold JSON and base64, which have no control characters.
    """
    start = tail.rfind(_ENTRY, len(tail) - 8 - int.from_bytes(tail[-8:-4], "little"))
    if start < 0:
        return None
    place, length, shift = start + len(_ENTRY), 0, 0
    while True:  # the length, seven bits a byte; it ends, since the last byte of the file has its eighth bit clear
        length |= (tail[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if tail[place - 1] < 0x80:
            return tail[place : place + length]
