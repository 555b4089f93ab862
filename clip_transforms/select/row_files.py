"""Files that name rows of a dataset, as anybody's SQL writes them: `shard` and `row`, or a key a line."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.csv_table import read_csv
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.reader import read_table


class RowFileError(ValueError):
    """A file that names no rows of the dataset, or others, in one sentence."""


def rows_by_part(uri: str, dataset: Dataset) -> dict[str, np.ndarray]:
    """Find the rows that a file names. The file is held in memory; of the dataset one part at a time.

    Args:
        uri: a Parquet or CSV file with the columns `shard` and `row`, or a text file with a key a line.
        dataset: the dataset.
    Returns:
        Part → int64 places in the shard, sorted; without parts of which the file names no row.
    Raises:
        RowFileError: if it is no such file, or names a row that the dataset does not have, or a key that is not unique.
    """
    kind = uri.lower().rpartition(".")[2]
    if kind in ("parquet", "csv"):
        return _by_place(uri, _read_places(uri, kind), dataset)
    if kind == "txt":
        return _by_key(uri, dataset)
    raise RowFileError(
        f"--selection {uri} must be a folder that filter wrote, a .parquet or .csv file with the columns shard and "
        "row, or a .txt file with a key a line"
    )


def _read_places(uri: str, kind: str) -> pa.Table:
    """Read the two columns of a Parquet or CSV file."""
    data = storage.read_bytes(uri)
    try:
        if kind == "parquet":
            file = pq.ParquetFile(io.BytesIO(data))
            names = file.schema_arrow.names
            table = file.read([name for name in ("shard", "row") if name in names], use_threads=False)
        else:
            table = read_csv(data, {"shard": pa.string(), "row": pa.int64()})
            names = table.column_names
        if not {"shard", "row"} <= set(names):
            found = ", ".join(names)
            raise RowFileError(f"--selection {uri} must have the columns shard and row, but it has {found}")
        table = table.select(["shard", "row"]).cast(pa.schema([("shard", pa.string()), ("row", pa.int64())]))
    except (pa.ArrowException, OSError) as error:
        if storage.is_of_the_machine(error):
            raise
        raise RowFileError(f"--selection {uri} cannot be read: {' '.join(str(error).split())}") from error
    if table.column("shard").null_count or table.column("row").null_count:
        raise RowFileError(f"--selection {uri} has a row without a shard or a row; leave such rows out")
    return table


def _by_place(uri: str, places: pa.Table, dataset: Dataset) -> dict[str, np.ndarray]:
    wanted: dict[str, np.ndarray] = {}
    order = places.sort_by([("shard", "ascending"), ("row", "ascending")])
    codes = order.column("shard").combine_chunks().dictionary_encode()
    rows = order.column("row").to_numpy()
    edges = np.flatnonzero(np.diff(codes.indices.to_numpy())) + 1
    for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True) if len(rows) else ():
        wanted[codes[start].as_py()] = np.unique(rows[start:stop])
    found: dict[str, np.ndarray] = {}
    left = dict(wanted)
    for part, shard in dataset.shards.items():
        if shard in wanted:
            own = read_table(dataset.uri, part, ["row"]).column("row").to_numpy()
            if len(named := np.intersect1d(wanted[shard], own)):
                found[part] = named
                left[shard] = np.setdiff1d(left[shard], named)
    for shard, rest in left.items():
        if len(rest):
            raise RowFileError(f"--selection {uri} names row {rest[0]} of {shard}, which {dataset.uri} does not have")
    return found


def _by_key(uri: str, dataset: Dataset) -> dict[str, np.ndarray]:
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").split("\n")  # a key may hold other ends of lines
    except UnicodeDecodeError as error:
        raise RowFileError(f"--selection {uri} is not UTF-8; write one key a line in UTF-8") from error
    keys = pa.array(sorted({line.removesuffix("\r") for line in lines} - {""}), pa.string())
    found: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for part in dataset.parts:
        table = read_table(dataset.uri, part, ["key", "row"])
        table = table.filter(pc.is_in(table.column("key"), value_set=keys))
        for key in table.column("key").to_pylist():
            if key in seen:
                raise RowFileError(
                    f"--selection {uri} names the key {key}, which {dataset.uri} has more than once; name rows by "
                    "shard and row, in a .parquet or .csv file"
                )
            seen.add(key)
        if table.num_rows:
            found[part] = np.sort(table.column("row").to_numpy())
    if missing := [key for key in keys.to_pylist() if key not in seen]:
        raise RowFileError(f"--selection {uri} names the key {missing[0]}, which {dataset.uri} does not have")
    return found
