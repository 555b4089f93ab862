"""Keep the footers of parts on an object store together, so that a resumed run need not open every part.

A kept footer counts only while its part still has the size and the etag with which it was read. So these files may be
old, incomplete or gone: they decide how long planning takes, and never its outcome. On this machine there are none.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.footer_text import footer_text
from clip_transforms.parts.parquet_writer import ParquetWriter
from schemas.kept_footers import KEPT_FOOTERS

FOLDER = "_footers"
_THREADS = 16
_MANY = 64  # files; more of them are put together at the end of a run
_ROWS = 4_096
_LOGGER = logging.getLogger(__name__)


def keep_footers(output: str, kinds: Sequence[str], parts: Sequence[str]) -> None:
    """Keep the footers of parts that were committed, in a new file for each kind.

    Args:
        output: URI of the dataset.
        kinds: kinds of parts, such as `embeddings`.
        parts: names of the parts.
    """
    if not storage.is_local(output):
        for kind in kinds:
            if rows := list(_read(output, kind, parts)):
                write_kept(output, kind, [pa.RecordBatch.from_pylist(rows, KEPT_FOOTERS)])


def _read(output: str, kind: str, parts: Iterable[str]) -> Iterator[dict[str, str | bytes]]:
    """Yield a row for each part that is whole."""

    def read(part: str) -> dict[str, str | bytes] | None:
        uri = storage.join(output, kind, f"{part}.parquet")
        stamp = storage.stamp(uri)
        text = footer_text(uri) if stamp else None
        # A part that was replaced meanwhile would be kept under a stamp that it does not have.
        if not text or storage.stamp(uri) != stamp:
            return None
        return {"part": part, "stamp": stamp, "footer": text}

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from filter(None, pool.map(read, parts))


def write_kept(output: str, kind: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a new file of kept footers, batches of KEPT_FOOTERS. It is whole when it appears."""
    storage.make_folder(_folder(output, kind))
    with tempfile.TemporaryDirectory() as folder:
        with ParquetWriter(f"{folder}/footers", KEPT_FOOTERS, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        storage.commit_file(f"{folder}/footers", storage.join(_folder(output, kind), f"{secrets.token_hex(8)}.parquet"))


def _folder(output: str, kind: str) -> str:
    return storage.join(output, FOLDER, kind)


def kept_footers(output: str, kind: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield what is kept: name of the part, stamp of its file, JSON of its footer. A part may come several times."""
    for batch in _kept(output, kind, _files(output, kind)):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _files(output: str, kind: str) -> dict[str, str]:
    return {} if storage.is_local(output) else storage.stamps_in(_folder(output, kind), ".parquet")


def _kept(output: str, kind: str, files: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some files; those of a file that is gone or damaged are missing."""

    def read(name: str) -> tuple[str, bytes | None]:
        uri = storage.join(_folder(output, kind), name)
        with contextlib.suppress(FileNotFoundError):  # another run has put it together with others
            return uri, storage.read_bytes(uri, int(files[name].partition("-")[0]))
        return uri, None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for uri, data in pool.map(read, (name for name, stamp in files.items() if stamp)):
            if data is None:
                continue
            try:
                file = pq.ParquetFile(pa.BufferReader(data))
                if not file.schema_arrow.equals(KEPT_FOOTERS):
                    raise ValueError(f"it holds {', '.join(file.schema_arrow.names)}")
                yield from file.iter_batches(_ROWS)
            except (OSError, ValueError, pa.ArrowException) as error:
                _LOGGER.warning("%s is damaged (%s), so parts are opened instead; it may be removed", uri, error)


def tidy_footers(output: str, kinds: Iterable[str]) -> None:
    """At the end of a run, keep the footers that no task has kept, and put many files together.

    Args:
        output: URI of the dataset.
        kinds: kinds of parts.
    """
    if not storage.is_local(output):
        for kind in kinds:
            _tidy(output, kind)


def _tidy(output: str, kind: str) -> None:
    files = _files(output, kind)
    parts = storage.stamps_in(storage.join(output, kind), ".parquet")
    stamps = {name.removesuffix(".parquet"): stamp for name, stamp in parts.items() if stamp}
    left = dict(stamps)
    for batch in _kept(output, kind, files):
        _take(batch, left)
    missing = list(left)
    if not missing and len(files) <= _MANY:
        return

    def batches() -> Iterator[pa.RecordBatch]:
        left = dict(stamps)
        for batch in _kept(output, kind, files):
            yield batch.filter(_take(batch, left))
        for i in range(0, len(missing), _ROWS):
            yield pa.RecordBatch.from_pylist(list(_read(output, kind, missing[i : i + _ROWS])), KEPT_FOOTERS)

    write_kept(output, kind, batches())
    storage.remove_files([storage.join(_folder(output, kind), name) for name in files])


def _take(batch: pa.RecordBatch, left: dict[str, str]) -> pa.Array:
    """Take parts out of `left`, part → stamp, if a row has this stamp; return which rows have."""
    rows = zip(batch.column("part").to_pylist(), batch.column("stamp").to_pylist(), strict=True)
    return pa.array([left.get(part) == stamp and bool(left.pop(part)) for part, stamp in rows], pa.bool_())
