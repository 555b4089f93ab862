"""Read the names of parts from the entries of a folder, and their footers from the last bytes of each file."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.footer_text import footer_text
from clip_transforms.parts.kept_footers import kept_footers
from schemas.provenance import Footer, check_format

_THREADS, _CHUNK = 16, 64
_SLOW = 0.0005  # seconds per footer; threads help if reading takes longer
_PROVENANCE = b'"provenance": '
_KEYS = {"fingerprint", "maker"}  # a part has the first key, a file of class embeddings the second
_T = TypeVar("_T")
Parts: TypeAlias = Sequence[str] | Mapping[str, str]


def part_names(output: str, kind: str) -> set[str]:
    """List the names of the parts in `output/<kind>`, without extension."""
    return set(part_stamps(output, kind))


def part_stamps(output: str, kind: str) -> dict[str, str]:
    """List the parts in `output/<kind>`: name → stamp of its file, see `storage.stamps_in`."""
    found = storage.stamps_in(storage.join(output, kind), ".parquet")
    return {name.removesuffix(".parquet"): stamp for name, stamp in found.items()}


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
    return _decoded(footer_text(uri), json.loads, uri)


def _decoded(text: bytes | None, decode: Callable[[bytes], Any], uri: str) -> Footer | None:
    """Turn the JSON of a footer into a value with `decode`; None if it is not one of ours."""
    try:
        footer = decode(text) if text else None
    except ValueError:
        return None
    if not isinstance(footer, dict) or not _KEYS & footer.keys():
        return None
    check_format(footer, uri)
    return cast(Footer, footer)


def read_footers(output: str, kind: str, parts: Parts) -> dict[str, Footer]:
    """Part → footer of the parts that are whole and ours. Content that footers share is held in memory once.

    Args:
        output: URI of the dataset.
        kind: kind of the parts, such as `embeddings`.
        parts: names of parts; as the keys of `part_stamps` if they have just been listed, which saves a listing.
    """

    def pick(footer: Footer) -> Footer:
        slim = cast(Footer, {sys.intern(key): value for key, value in footer.items()})
        slim["fingerprint"] = sys.intern(footer.get("fingerprint", ""))
        slim["counts"] = {sys.intern(key): value for key, value in footer.get("counts", {}).items()}
        slim.setdefault("provenance", {})
        return slim

    return _read_all(output, kind, parts, pick)


def read_digests(output: str, kind: str, parts: Parts) -> dict[str, str | None]:
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


def _read_all(output: str, kind: str, parts: Parts, pick: Callable[[Footer], _T]) -> dict[str, _T]:
    decode, folder = _Decoder(), storage.join(output, kind)

    def picked(part: str, text: bytes | None) -> list[tuple[str, _T]]:
        footer = _decoded(text, decode, f"{folder}/{part}.parquet")
        return [] if footer is None else [(part, pick(footer))]

    def read(some: Sequence[str]) -> list[tuple[str, _T]]:
        return [found for part in some for found in picked(part, footer_text(f"{folder}/{part}.parquet"))]

    known = dict(found for part, text in _kept(output, kind, parts) for found in picked(part, text))
    left = [part for part in parts if part not in known]
    chunks = [left[i : i + _CHUNK] for i in range(0, len(left), _CHUNK)]
    start = time.perf_counter()
    found = [read(chunk) for chunk in chunks[:1]]
    # Files in the page cache are read twice as fast without threads, which would only wait for each other.
    slow = time.perf_counter() - start > _SLOW * _CHUNK
    with concurrent.futures.ThreadPoolExecutor(_THREADS if slow else 1) as pool:
        found += pool.map(read, chunks[1:])
    known |= {part: picked for some in found for part, picked in some}
    return {part: known[part] for part in parts if part in known}


def _kept(output: str, kind: str, parts: Parts) -> Iterator[tuple[str, bytes]]:
    """Yield the kept footers of those of the parts that have not changed since; part and JSON."""
    kept = kept_footers(output, kind)
    for first in kept:
        stamps = parts if isinstance(parts, Mapping) else part_stamps(output, kind)
        wanted = {part: stamps.get(part) for part in parts}
        for part, stamp, text in itertools.chain([first], kept):
            if wanted.get(part) == stamp:
                yield part, text
