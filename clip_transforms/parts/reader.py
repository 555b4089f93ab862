"""Read parts back: footers, what is committed, and rows with their labels."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from schemas.embeddings import EMBEDDINGS
from schemas.provenance import FOOTER_KEY, Footer, decode_footer

_THREADS, _CHUNK = 16, 64
_SLOW = 0.0005  # seconds a footer, from which on threads help
_TAIL_BYTES = 32 << 10  # holds most footers
_MAGIC = b"PAR1"
_ENTRY = b"\x18" + bytes([len(FOOTER_KEY)]) + FOOTER_KEY + b"\x18"  # a text of that length, and another text
_KEYS = {"fingerprint", "maker"}  # a part has the one, a file of class embeddings the other
_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)


class DatasetError(ValueError):
    """A dataset that cannot be read as one, in one sentence."""


def part_names(output: str, kind: str) -> set[str]:
    """The names of the parts in `output/<kind>`, without extension, from one listing."""
    return {name.removesuffix(".parquet") for name in storage.names_in(storage.join(output, kind), ".parquet")}


def taxonomy_names(output: str) -> set[str]:
    """The taxonomies that have a folder of labels."""
    return set(storage.names_in(storage.join(output, "labels")))


def part_uri(output: str, kind: str, part: str) -> str:
    """Where a part lies."""
    return storage.join(output, kind, f"{part}.parquet")


def read_footer(uri: str) -> Footer | None:
    """What a part says of itself; None if it is missing, not whole, or not one of ours.

    Raises:
        OSError: if that cannot be told, since storage fails.
    """
    try:
        with storage.open_input(uri) as file:
            tail = _tail(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    try:
        text = tail and (_own_entry(tail) or (pq.read_metadata(pa.BufferReader(tail)).metadata or {}).get(FOOTER_KEY))
        footer = json.loads(text) if text else None
    except (OSError, ValueError, pa.ArrowException):  # what lies in memory cannot be parsed
        return None
    return footer if isinstance(footer, dict) and _KEYS & footer.keys() else None


def _tail(file: IO[bytes]) -> bytes | None:
    """The end of a Parquet file, from its footer on or from before it; None if the file is not whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _MAGIC or length + len(_MAGIC) + 8 > size:
        return None
    if length + 8 > len(tail):
        file.seek(size - length - 8)
        tail = file.read(length + 8)
    return tail


def _own_entry(tail: bytes) -> bytes | None:
    """The value of our key in the footer of a Parquet file; None if the key is not there.

    Of a hundred thousand parts, pyarrow's parsing of what all the columns say takes most of planning's time. The key's
    entry is found as Thrift's compact form writes it, from the end: behind the entries nothing of the user's follows,
    and in the entries themselves, JSON and base64, there are no control characters.
    """
    start = tail.rfind(_ENTRY, len(tail) - 8 - int.from_bytes(tail[-8:-4], "little"))
    if start < 0:
        return None
    place, length, shift = start + len(_ENTRY), 0, 0
    while True:  # the value's length, seven bits a byte; the file ends with a byte that has the eighth bit clear
        length |= (tail[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if tail[place - 1] < 0x80:
            return tail[place : place + length]


def read_footers(output: str, kind: str, parts: Sequence[str]) -> dict[str, Footer]:
    """Part → footer, of those that are whole and ours; what they have in common is in memory once."""
    provenances: list[Any] = []  # few: one for each kind of worker that made parts

    def pick(footer: Footer) -> Footer:
        slim = {sys.intern(key): value for key, value in footer.items()}
        slim["fingerprint"] = sys.intern(footer.get("fingerprint", ""))
        slim["counts"] = {sys.intern(key): value for key, value in footer.get("counts", {}).items()}
        same = next((known for known in provenances if known == footer.get("provenance")), None)
        if same is None:
            provenances.append(same := footer.get("provenance", {}))
        slim["provenance"] = same
        return slim

    return _read_all(output, kind, parts, pick)


def read_digests(output: str, kind: str, parts: Sequence[str]) -> dict[str, str | None]:
    """Part → digest, of those that are whole and ours."""
    return _read_all(output, kind, parts, lambda footer: footer.get("digest"))


def _read_all(output: str, kind: str, parts: Sequence[str], pick: Callable[[Footer], _T]) -> dict[str, _T]:
    def read(some: Sequence[str]) -> list[tuple[str, _T]]:
        footers = ((part, read_footer(part_uri(output, kind, part))) for part in some)
        return [(part, pick(footer)) for part, footer in footers if footer is not None]

    chunks = [parts[i : i + _CHUNK] for i in range(0, len(parts), _CHUNK)]
    start = time.perf_counter()
    found = [read(chunk) for chunk in chunks[:1]]
    # What lies in this machine's memory is read twice as fast without threads, which then only wait for each other.
    slow = time.perf_counter() - start > _SLOW * _CHUNK
    with concurrent.futures.ThreadPoolExecutor(_THREADS if slow else 1) as pool:
        found += pool.map(read, chunks[1:])
    return {part: picked for some in found for part, picked in some}


def check_dataset(output: str, taxonomies: Sequence[str] = ()) -> list[str]:
    """The parts of a dataset that may be read as one, sorted.

    Raises:
        DatasetError: if there is no dataset, or parts of two fingerprints lie in it, or a labels part is missing.
    """
    names = sorted(part_names(output, "embeddings"))
    if not names:
        raise DatasetError(f"{output} holds no embeddings; python -m pipelines.embed makes them")
    footers = read_footers(output, "embeddings", names)
    if damaged := [name for name in names if name not in footers]:
        raise DatasetError(
            f"{part_uri(output, 'embeddings', damaged[0])} is not whole; run the same embed command again"
        )
    fingerprints = sorted({footer["fingerprint"] for footer in footers.values()})
    if len(fingerprints) > 1:
        raise DatasetError(
            f"{output} holds parts of {len(fingerprints)} fingerprints ({', '.join(f[:8] for f in fingerprints)}): an "
            "--overwrite was interrupted; run it again to its end"
        )
    for taxonomy in taxonomies:
        if missing := sorted(set(names) - part_names(output, f"labels/{taxonomy}")):
            raise DatasetError(
                f"{output} has no labels/{taxonomy} for {len(missing)} of {len(names)} parts, {missing[0]} among them; "
                f"make them with --taxonomy"
            )
        labels = read_footers(output, f"labels/{taxonomy}", names)
        if len({footer.get("taxonomy_digest") for footer in labels.values()}) > 1:
            raise DatasetError(
                f"{output} has labels/{taxonomy} of different classes: an --overwrite was interrupted; run it again"
            )
    if not storage.exists(storage.join(output, "_SUCCESS")):
        _LOGGER.warning("%s has no _SUCCESS: its last run was not complete, so samples may be missing", output)
    return names


def read_part(
    output: str, part: str, columns: Sequence[str] | None = None, taxonomies: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Read the rows of one part, with labels beside them.

    Args:
        output: URI of the dataset.
        part: its name.
        columns: of the embeddings, all by default; of labels, `<taxonomy>.label` and the like.
        taxonomies: whose labels are joined, as columns `<taxonomy>.label`, `.probability`, `.similarity`, `.margin`
            and `.top`.
    Yields:
        Batches; embeddings are FixedSizeList of d float32 or float16.
    Raises:
        DatasetError: if embeddings and labels do not belong together.
    """
    tables = [_open_part(output, "embeddings", part), *(_open_part(output, f"labels/{t}", part) for t in taxonomies)]
    digests = {table.schema.metadata[b"digest"] for table in tables}
    if len(digests) > 1:
        raise DatasetError(
            f"the labels of {part} in {output} were made from other embeddings; run the same command again"
        )
    joined = tables[0]
    for taxonomy, labels in zip(taxonomies, tables[1:], strict=True):
        for field in labels.schema:
            if field.name not in ("key", "shard", "row"):
                joined = joined.append_column(f"{taxonomy}.{field.name}", labels.column(field.name))
    if columns is not None:
        if unknown := [name for name in columns if name not in joined.schema.names]:
            raise DatasetError(f"{output} has no column {unknown[0]}; it has {', '.join(joined.schema.names)}")
        joined = joined.select(list(columns))
    d = int(tables[0].schema.metadata[b"embed_dim"])
    for batch in joined.replace_schema_metadata(None).to_batches():
        yield fixed_size(batch, d)


def _open_part(output: str, kind: str, part: str) -> pa.Table:
    with storage.open_input(part_uri(output, kind, part)) as file:
        # Not pq.read_table: its thread pool now and then aborts the process at exit when it read a Python file.
        table = pq.ParquetFile(file).read(use_threads=False)
    footer = decode_footer(table.schema.metadata) or {}
    d = footer.get("provenance", {}).get("embed_dim", 0)
    return table.replace_schema_metadata({"digest": footer.get("digest", ""), "embed_dim": str(d)})


def fixed_size(batch: pa.RecordBatch, d: int) -> pa.RecordBatch:
    """The same rows with embeddings as FixedSizeList of d, which reads as a matrix."""
    for name in EMBEDDINGS:
        if name in batch.schema.names:
            place = batch.schema.names.index(name)
            lists = batch.column(place)
            batch = batch.set_column(place, name, lists.cast(pa.list_(lists.type.value_type, d)))
    return batch
