"""Groups of duplicates: their rows on the way from the parts, who stays, and the files that say so."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.select.bucket_file import read_bucket, read_ends, split_sorted, write_buckets
from clip_transforms.select.compared_rows import ComparedRows, pixels
from clip_transforms.select.cosines import cosines
from clip_transforms.select.disjoint_sets import components
from clip_transforms.select.keepers import keepers
from schemas.groups import groups_schema

COLUMNS = ("key", "shard", "row", "clip_score", "width", "height")  # what is read of a part
MEMBER = np.dtype([("id", "<i8"), ("group", "<i8"), ("bucket", "<i4"), ("dropped", "?"), ("cosine", "<f4")])
_BUCKET_ROWS = 65_536  # rows of a file of groups, but for the last group in it
_HASH_ROWS = 131_072  # rows of a bucket of hashes
_SCORE, _PIXELS = pa.float32(), pa.int64()


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Rows of some whole groups.

    Attributes:
        rows: `id`, `key`, `shard`, `row`, `clip_score` and `pixels` of n rows.
        groups: int64 [n], number of each row's group.
    """

    rows: pa.Table
    groups: np.ndarray

    def take(self, places: np.ndarray) -> Grouped:
        """Return some of the rows."""
        return Grouped(self.rows.take(places), self.groups[places])


def described_rows(found: ComparedRows, *also: str) -> pa.Table:
    """Return what decides who stays, and the names, of compared rows that were read with COLUMNS."""
    columns = {
        "id": pa.array(found.ids, pa.int64()),
        "key": found.table.column("key"),
        "shard": found.table.column("shard").cast(pa.string()),
        "row": found.table.column("row"),
        "clip_score": found.table.column("clip_score").cast(_SCORE),
        "pixels": pixels(found.table),
    }
    return pa.table(columns | {name: found.table.column(name) for name in also})


def as_bytes(table: pa.Table) -> bytes:
    """Return rows as an Arrow IPC stream; no rows are no bytes."""
    if not table.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def read_rows(uris: Sequence[str], bucket: int) -> list[pa.Table]:
    """Read the rows of one bucket of each file; a file without rows for it is left out."""
    data = (read_bucket(uri, bucket) for uri in uris)
    return [pa.ipc.open_stream(some).read_all() for some in data if some]


def hash_buckets(hashes: pa.ChunkedArray, count: int) -> np.ndarray:
    """Return the bucket of each hexadecimal hash: int64 [n], 0 to count - 1."""
    numbers = np.array([int(text[:8], 16) for text in hashes.to_pylist()], np.int64)
    return numbers * count >> 32


def how_many_hash_buckets(rows: int) -> int:
    """Return the number of buckets for a number of rows, at least 1."""
    return max(1, -(-rows // _HASH_ROWS))


def same_hash(tables: Sequence[pa.Table], bucket: int) -> Grouped | None:
    """Find the rows of a bucket whose hash occurs more than once; None if there are none.

    The groups are numbered by their first rows, from bucket · 2^32.
    """
    if not tables:
        return None
    rows = pa.concat_tables(tables).sort_by("id")
    hashes = pc.dictionary_encode(rows.column("image_sha256").combine_chunks()).indices.to_numpy()
    several = np.flatnonzero(np.bincount(hashes)[hashes] > 1)
    if not len(several):
        return None
    numbers = np.unique(hashes[several], return_inverse=True)[1]  # hashes are numbered in the order of the rows
    return Grouped(rows.take(several), (np.int64(bucket) << 32) + numbers)


def members_of(edges: np.ndarray, dropped: np.ndarray, cosines_of_dropped: np.ndarray) -> np.ndarray:
    """Number the groups by their first rows, and give them to buckets.

    Args:
        edges: int64 [e, 2], ids of rows that are near each other.
        dropped: int64 [r], sorted, ids of rows that the rule itself drops.
        cosines_of_dropped: float32 [r].
    Returns:
        MEMBER records of all rows with a near duplicate, sorted by id.
    """
    ids, firsts = components(edges[:, 0], edges[:, 1])
    members = np.zeros(len(ids), MEMBER)
    members["id"], members["cosine"] = ids, np.nan
    groups, members["group"], counts = np.unique(firsts, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    members["bucket"] = (starts // _BUCKET_ROWS)[members["group"]] if len(groups) else 0
    places = np.searchsorted(ids, dropped)
    members["dropped"][places], members["cosine"][places] = True, cosines_of_dropped
    return members


def chosen(grouped: Grouped, keep: str) -> np.ndarray:
    """Say who stays: bool [n]."""
    return keepers(grouped.rows, grouped.groups, keep)


def similarity_to_kept(
    uris: Sequence[str], bucket: int, groups: np.ndarray, kept: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Compute the cosine of each row with the kept row of its group; the vectors of one file at a time are held.

    Args:
        uris: files of buckets with vectors.
        bucket: the bucket.
        groups: int64 [n], in the order of the files.
        kept: bool [n], true once in each group.
        dtype: dtype of the m vectors of a row, with its shape.
    """
    sizes = [np.diff(read_ends(uri, bucket, bucket + 1))[0] // dtype.itemsize for uri in uris]
    ends = np.cumsum([0, *sizes])
    slices = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    stayed = [_vectors(uri, bucket, dtype)[kept[rows]] for uri, rows in zip(uris, slices, strict=True)]
    kept_vectors, order = np.concatenate(stayed), np.argsort(groups[kept])
    places = order[np.searchsorted(groups[kept][order], groups)]  # of each row's kept row among the kept ones
    found = np.empty(len(groups), np.float32)
    for uri, rows in zip(uris, slices, strict=True):
        both = np.concatenate([_vectors(uri, bucket, dtype), kept_vectors])
        n = rows.stop - rows.start
        found[rows] = cosines(both, np.arange(n), n + places[rows])
    return found


def _vectors(uri: str, bucket: int, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(read_bucket(uri, bucket), np.dtype([("values", dtype)]))["values"]


def write_groups(uri: str, grouped: Grouped | None, kept: np.ndarray, similarity: np.ndarray, scratch: str) -> None:
    """Write one file of groups whole, sorted by group and then in the dataset's order."""
    sink, schema = io.BytesIO(), groups_schema()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        if grouped is not None and grouped.rows.num_rows:  # some readers fail on an empty row group
            columns = {
                "group": grouped.groups,
                **{name: grouped.rows.column(name) for name in ("key", "shard", "row")},
                "kept": kept,
                "similarity": similarity,
            }
            order = np.lexsort([grouped.rows.column("id").to_numpy(), grouped.groups])
            writer.write_table(pa.table(columns).take(order).cast(schema))
    storage.write_bytes(uri, sink.getvalue(), scratch)


def write_dropped(
    uri: str, ids: np.ndarray, runs: np.ndarray, count: int, scratch: str, note: Mapping[str, int]
) -> None:
    """Write the ids of rows that are dropped, a bucket for each of `count` runs of parts."""
    order = np.argsort(runs, kind="stable")
    write_buckets(uri, split_sorted(ids[order].astype("<i8"), runs[order], count), scratch, note)
