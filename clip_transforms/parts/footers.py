"""Read the names of parts from the entries of a folder, and their footers from the last bytes of each file."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from schemas.provenance import FOOTER_KEY, Footer, check_format

_THREADS, _CHUNK = 16, 64
_SLOW = 0.0005  # seconds per footer; threads help if reading takes longer
_TAIL_BYTES = 32 << 10  # most footers fit
_MAGIC = b"PAR1"
_ENTRY = b"\x18" + bytes([len(FOOTER_KEY)]) + FOOTER_KEY + b"\x18"  # Thrift: a text of this length, then a second text
_PROVENANCE = b'"provenance": '
_KEYS = {"fingerprint", "maker"}  # a part has the first key, a file of class embeddings the second
_T = TypeVar("_T")


def part_names(output: str, kind: str) -> set[str]:
    """List the names of the parts in `output/<kind>`, without extension."""
    return {name.removesuffix(".parquet") for name in storage.names_in(storage.join(output, kind), ".parquet")}


def taxonomy_names(output: str) -> set[str]:
    """List the taxonomies that have a folder of labels."""
    return set(storage.names_in(storage.join(output, "labels")))


def has_captions(output: str) -> bool:
    """Return whether a run with `--captions all` wrote parts here."""
    return bool(part_names(output, "captions"))


def part_uri(output: str, kind: str, part: str) -> str:
    """URI of a part."""
    return storage.join(output, kind, f"{part}.parquet")


def column_names(output: str, part: str) -> list[str]:
    """Return the names of the columns of a part of the embeddings."""
    with storage.open_input(part_uri(output, "embeddings", part)) as file:
        return pq.read_schema(file).names


def read_footer(uri: str) -> Footer | None:
    """Read what a part says of itself; None if the file is missing, not whole, or not one of ours.

    Raises:
        FormatError: if a newer version of this program wrote it.
        OSError: if storage fails, so that it cannot be told.
    """
    return _read(uri, json.loads)


def _read(uri: str, decode: Callable[[bytes], Any]) -> Footer | None:
    """Do the work of `read_footer`; `decode` turns the JSON into a value."""
    try:
        tail = _tail(uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    try:
        text = tail and (_own_entry(tail) or (pq.read_metadata(pa.BufferReader(tail)).metadata or {}).get(FOOTER_KEY))
        footer = decode(text) if text else None
    except (OSError, ValueError, pa.ArrowException):  # the bytes in memory cannot be parsed
        return None
    if not isinstance(footer, dict) or not _KEYS & footer.keys():
        return None
    check_format(footer, uri)
    return cast(Footer, footer)


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


def read_footers(output: str, kind: str, parts: Sequence[str]) -> dict[str, Footer]:
    """Part → footer of the parts that are whole and ours. Content that footers share is held in memory once."""

    def pick(footer: Footer) -> Footer:
        slim = cast(Footer, {sys.intern(key): value for key, value in footer.items()})
        slim["fingerprint"] = sys.intern(footer.get("fingerprint", ""))
        slim["counts"] = {sys.intern(key): value for key, value in footer.get("counts", {}).items()}
        slim.setdefault("provenance", {})
        return slim

    return _read_all(output, kind, parts, pick)


def read_digests(output: str, kind: str, parts: Sequence[str]) -> dict[str, str | None]:
    """Part → digest of the parts that are whole and ours."""
    return _read_all(output, kind, parts, lambda footer: footer.get("digest"))


class _Decoder:
    """Decodes the footers of many parts. A provenance that they share is decoded and held in memory once.

    It makes up most of a footer, and there are few of them: one for each kind of worker.
    """

    def __init__(self) -> None:
        self._known: list[tuple[bytes, Any]] = []  # the text of a provenance, and its value

    def __call__(self, text: bytes) -> Any:
        start = text.find(_PROVENANCE) + len(_PROVENANCE)  # a key: inside a string its quotes would be escaped
        for known, provenance in self._known:
            if text.startswith(known, start):
                footer = json.loads(text[:start] + b"null" + text[start + len(known) :])
                if isinstance(footer, dict) and footer.get("provenance", provenance) is None:  # else it lies deeper
                    return {**footer, "provenance": provenance}
        footer = json.loads(text)
        if isinstance(footer, dict) and isinstance(footer.get("provenance"), dict):
            written = json.dumps(footer["provenance"], sort_keys=True).encode()
            if text.startswith(written, start):
                self._known.append((written, footer["provenance"]))
        return footer


def _read_all(output: str, kind: str, parts: Sequence[str], pick: Callable[[Footer], _T]) -> dict[str, _T]:
    decode, folder = _Decoder(), storage.join(output, kind)

    def read(some: Sequence[str]) -> list[tuple[str, _T]]:
        footers = ((part, _read(f"{folder}/{part}.parquet", decode)) for part in some)
        return [(part, pick(footer)) for part, footer in footers if footer is not None]

    chunks = [parts[i : i + _CHUNK] for i in range(0, len(parts), _CHUNK)]
    start = time.perf_counter()
    found = [read(chunk) for chunk in chunks[:1]]
    # Files in the page cache are read twice as fast without threads, which would only wait for each other.
    slow = time.perf_counter() - start > _SLOW * _CHUNK
    with concurrent.futures.ThreadPoolExecutor(_THREADS if slow else 1) as pool:
        found += pool.map(read, chunks[1:])
    return {part: picked for some in found for part, picked in some}
