"""The folder of an index: which dataset it is of, and which row each id means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.parquet_writer import ParquetWriter
from clip_transforms.select.query_file import QueryError
from schemas.embeddings import KEY, ROW, SHARD, described
from schemas.provenance import check_format
from schemas.samples import MODALITIES

RECORD, INDEX, ROWS, QUERIES = "index.json", "index.faiss", "rows.parquet", "queries.parquet"
GROUP_ROWS = 16_384  # rows of a row group of `rows.parquet`: all but the last
_COMMAND = "_command.json"


def rows_schema() -> pa.Schema:
    """Return the schema of `rows.parquet`: row k is what the id k means."""
    return pa.schema([KEY, SHARD, ROW, described("part", pa.dictionary(pa.int32(), pa.string()), "name of the part")])


class RowsWriter:
    """Writes a file of `rows_schema` in row groups of GROUP_ROWS; use it as a context manager."""

    def __init__(self, path: str):
        """Open a local file."""
        self._writer = ParquetWriter(path, rows_schema(), compression="zstd", use_dictionary=["shard", "part"])
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table, part: str) -> None:
        """Add rows of a part: `key`, `shard` and `row`."""
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows.num_rows), pa.int32()), [part])
        self._waiting.append(rows.append_column("part", names).cast(rows_schema()))
        while sum(map(len, self._waiting)) >= GROUP_ROWS:
            table = pa.concat_tables(self._waiting)
            self._write(table.slice(0, GROUP_ROWS))
            self._waiting = [table.slice(GROUP_ROWS)]

    def _write(self, table: pa.Table) -> None:
        if table.num_rows:  # some readers fail on an empty row group
            self._writer.write_table(table.unify_dictionaries().combine_chunks(), row_group_size=GROUP_ROWS)

    def __enter__(self) -> RowsWriter:
        """The writer itself."""
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        """Finish the file."""
        if kind is None and self._waiting:
            self._write(pa.concat_tables(self._waiting))
        self._writer.close()


@dataclasses.dataclass(frozen=True)
class IndexFolder:
    """An index that fits a dataset; `IndexFolder.open` makes one. It is small and can be sent to workers.

    Attributes:
        uri: URI of the folder.
        against: `image` or `caption`: whose embeddings it holds.
        kind: `flat`, `hnsw` or `ivf`.
        effort: how hard it searches.
        rows: number of its rows.
        digest: SHA-256 of its record.
    """

    uri: str
    against: str
    kind: str
    effort: int
    rows: int
    digest: str

    @classmethod
    def open(cls, index: storage.Place, dataset: Dataset, digest: str) -> IndexFolder:
        """Open an index of a dataset. Neither vectors nor rows are read.

        Args:
            index: folder that `pipelines.index` wrote.
            dataset: the dataset.
            digest: digest over all its parts.
        Raises:
            QueryError: if it is no index, is not complete, or is of another dataset, or of the same before it changed.
        """
        uri = storage.normalise(storage.as_uri(index, "index"))
        record, again = storage.join(uri, RECORD), f"python -m pipelines.index --input {dataset.uri} makes one"
        if not storage.exists(storage.join(uri, "_SUCCESS")) or not storage.exists(record):
            began = _began(storage.join(uri, _COMMAND))
            state = "is not complete; run the command that made it again" if began else f"is no index; {again}"
            raise QueryError(f"--index {uri} {state}")
        try:
            made: Mapping[str, Any] = json.loads(storage.read_bytes(record))
            of = made["made_by"]
            found = cls(uri, of["against"], made["kind"], made["effort"], made["rows"], storage.sha256(record))
            check_format(made, record)
        except (ValueError, KeyError, TypeError) as error:
            raise QueryError(f"{record} is damaged; run the command that made --index {uri} again") from error
        if of.get("fingerprint") != dataset.fingerprint:
            raise QueryError(f"--index {uri} is of another dataset, {of.get('dataset')}; {again} of this one")
        if made.get("digest") != digest:
            raise QueryError(
                f"--index {uri} was made before {dataset.uri} changed; {again} anew, with --output {uri} --overwrite"
            )
        return found

    def against_or_refuse(self, asked: str | None) -> str:
        """Return whose embeddings are compared.

        Raises:
            QueryError: if others are asked for.
        """
        if asked in (None, self.against):
            return self.against
        other = f", or make an index with --against {asked}" if asked in MODALITIES else ", which searches both exactly"
        raise QueryError(
            f"--against is {asked}, but --index {self.uri} holds {self.against} embeddings; omit --index{other}"
        )

    def rows_of(self, ids: np.ndarray) -> pa.Table:
        """Return what ids mean, in their order: `key`, `shard`, `row` and `part`."""
        with storage.open_input(storage.join(self.uri, ROWS)) as file:
            read = pq.ParquetFile(file)
            if not len(ids):
                return read.schema_arrow.empty_table()
            ends = np.cumsum([read.metadata.row_group(group).num_rows for group in range(read.num_row_groups)])
            groups = np.unique(of_ids := np.searchsorted(ends, ids, side="right"))
            table = read.read_row_groups(groups.tolist(), use_threads=False)
        before = ends - np.diff(ends, prepend=0)
        starts = np.cumsum([0, *(ends - before)[groups]])[:-1]  # of the groups in the table
        places = starts[np.searchsorted(groups, of_ids)] + ids - before[of_ids]
        return table.unify_dictionaries().take(pa.array(places))

    def allowed(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Say which ids mean some rows.

        Args:
            rows: part → int64 places in the shard.
        Returns:
            bool [rows of the index].
        """
        with storage.open_input(storage.join(self.uri, ROWS)) as file:
            table = pq.ParquetFile(file).read(["row", "part"], use_threads=False)
        allowed, place = np.zeros(self.rows, bool), table.column("row").to_numpy()
        part = table.column("part").cast(pa.string())
        edges = _edges(part)
        for first, stop in zip(edges[:-1], edges[1:], strict=True):
            own = rows.get(part[int(first)].as_py())
            if own is not None:
                allowed[first:stop] = np.isin(place[first:stop], own)
        return allowed


def _edges(part: pa.ChunkedArray) -> np.ndarray:
    """Return where the rows of another part begin, and the end; the rows of a part follow each other."""
    codes = pc.index_in(part, value_set=pc.unique(part)).to_numpy() if len(part) else np.empty(0, int)
    inner = np.flatnonzero(np.diff(codes)) + 1
    return np.unique([0, *inner, len(codes)])


def _began(command: str) -> bool:
    """Say whether the file that a verb leaves at its start is that of an index."""
    if not storage.exists(command):
        return False
    try:
        made = json.loads(storage.read_bytes(command))
    except (ValueError, RecursionError):
        return False
    return isinstance(made, dict) and made.get("verb") == "index"
