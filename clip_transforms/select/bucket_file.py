"""A file of buckets: what one task writes for many others, each of which reads one range of it.

The file is an index of int64, little-endian (how many buckets, and where each begins and the last ends, in bytes after
the index), and then the buckets. The last bucket is a note in JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms import storage

_PLACE = np.dtype("<i8")


def write_buckets(
    uri: str, buckets: Iterable[bytes | np.ndarray], scratch: str, note: Mapping[str, Any] | None = None
) -> None:
    """Write a file of buckets whole, or nothing.

    Args:
        uri: URI of the file.
        buckets: the bytes of each bucket; many may be empty.
        scratch: URI of a folder on the same file system, for the unfinished file.
        note: what the file has to tell, as JSON values.
    """
    buckets = [*buckets, json.dumps(note or {}).encode()]
    parts: list[Any] = [np.frombuffer(bucket, np.uint8) if len(bucket) else b"" for bucket in buckets]
    ends = np.cumsum([0, *map(len, parts)], dtype=_PLACE)
    handle, local = tempfile.mkstemp(dir=storage.normalise(scratch) if storage.is_local(uri) else None)
    try:
        with storage.open_output(uri if storage.is_local(uri) else local, handle) as file:
            file.write(np.array([len(parts)], _PLACE).tobytes() + ends.tobytes())
            file.writelines(parts)
        storage.commit_file(local, uri)
    except BaseException:
        if os.path.exists(local):
            os.unlink(local)
        raise


def read_ends(uri: str, first: int, stop: int) -> np.ndarray:
    """Return where the buckets from `first` to before `stop` begin, and where the last ends: int64 [stop - first + 1].

    The places are bytes after the index.
    """
    with storage.open_input(uri) as file:
        file.seek(_PLACE.itemsize * (1 + first))
        return np.frombuffer(file.read(_PLACE.itemsize * (stop - first + 1)), _PLACE)


def read_bytes(uri: str, start: int, stop: int) -> bytes:
    """Return the bytes from `start` to before `stop` after the index."""
    if start == stop:
        return b""
    with storage.open_input(uri) as file:
        count = int(np.frombuffer(file.read(_PLACE.itemsize), _PLACE)[0])
        file.seek(_PLACE.itemsize * (count + 2) + start)
        data = file.read(stop - start)
    if len(data) != stop - start:
        raise OSError(f"{uri} ends early, after {len(data)} of {stop - start} bytes")
    return data


def read_bucket(uri: str, bucket: int) -> bytes:
    """Return the bytes of one bucket."""
    start, stop = read_ends(uri, bucket, bucket + 1)
    return read_bytes(uri, int(start), int(stop))


def read_note(uri: str) -> dict[str, Any] | None:
    """Return the note of a file; None if there is no file."""
    try:
        with storage.open_input(uri) as file:
            count = int(np.frombuffer(file.read(_PLACE.itemsize), _PLACE)[0])
    except FileNotFoundError:
        return None
    return json.loads(read_bucket(uri, count - 1))


def read_records(uris: Sequence[str], bucket: int, dtype: np.dtype) -> np.ndarray:
    """Return the records of one bucket of every file, one after the other."""
    return np.concatenate([np.empty(0, dtype), *(np.frombuffer(read_bucket(uri, bucket), dtype) for uri in uris)])


def split_sorted(rows: np.ndarray, buckets: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut rows that are sorted by bucket into `count` buckets."""
    ends = np.searchsorted(buckets, np.arange(count + 1))
    return [rows[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
