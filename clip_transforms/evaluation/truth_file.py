"""Files that name the right classes of samples, and the rows of the dataset that they are about."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.evaluation.truth import FOLDER, TruthError, check_type, flat
from clip_transforms.parts.csv_table import read_csv
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.reader import read_table

ONE, SEVERAL = "class", "classes"
_LIST = pa.list_(pa.string())


@dataclasses.dataclass(frozen=True)
class TruthFile:
    """A file that has been read; it is held in memory.

    Attributes:
        uri: URI of the file.
        table: `key`, or `shard` and `row`, which are unique together; and `truth`, a value or a list.
        by: the names of its first columns.
        several: whether truth is a list of classes.
    """

    uri: str
    table: pa.Table
    by: tuple[str, ...]
    several: bool

    @classmethod
    def read(cls, uri: str) -> TruthFile:
        """Read a Parquet or CSV file with `key`, or `shard` and `row`; and `class`, or `classes` for a list.

        Raises:
            TruthError: if it is no such file, or gives one sample two classes without being a list.
        """
        table = _read(uri)
        names = table.column_names
        by = ("shard", "row") if {"shard", "row"} <= set(names) else ("key",)
        if {ONE, SEVERAL} <= set(names):
            raise TruthError(f"--truth {uri} has the columns class and classes; keep one of them")
        truth = SEVERAL if SEVERAL in names else ONE
        if not {*by, truth} <= set(names):
            raise TruthError(
                f"--truth {uri} must have the column key, or shard and row, and the column class (or classes, for a "
                f"list), but it has {', '.join(names)}"
            )
        several = truth == SEVERAL or _is_list(table.schema.field(truth).type)
        of = table.schema.field(truth).type
        check_type(of.value_type if _is_list(of) else of, f"the column {truth} of --truth {uri}")
        table = table.select([*by, truth]).rename_columns([*by, "truth"]).combine_chunks()
        types = {"key": pa.string(), "shard": pa.string(), "row": pa.int64()}
        try:
            columns = {name: flat(table.column(name)).cast(types[name]) for name in by}
        except pa.ArrowException as error:
            raise TruthError(f"--truth {uri} cannot be read: {' '.join(str(error).split())}") from error
        truths = flat(table.column("truth"))
        if several and not _is_list(of):
            truths = pa.array([_listed(text, uri) for text in truths.cast(pa.string()).to_pylist()], _LIST)
        table = pa.table({**columns, "truth": truths})
        table = table.filter(pc.is_valid(table.column("truth")))
        return cls(uri, _merged(table, by, several, uri), by, several)

    def settle(self, dataset: Dataset, folder: str) -> None:
        """Write the truth of each part of the dataset into a folder, as `row` and `truth`.

        Args:
            dataset: the dataset.
            folder: URI of the run's temporary folder.
        """
        storage.make_folder(storage.join(folder, FOLDER))
        for part, table in self._by_part(dataset):
            sink = io.BytesIO()
            pq.write_table(table, sink)
            storage.write_bytes(part_uri(folder, FOLDER, part), sink.getvalue(), folder)

    def check(self, dataset: Dataset) -> int:
        """Count the samples of the file that the dataset has.

        Raises:
            TruthError: if there are none, or a key of the file is not unique in the dataset.
        """
        matched = sum(table.num_rows for _, table in self._by_part(dataset))
        if not matched and self.table.num_rows:
            first = ", ".join(f"{name} {self.table.column(name)[0].as_py()}" for name in self.by)
            there = ", ".join(f"{name} {value}" for name, value in self._first_of(dataset).items())
            raise TruthError(
                f"--truth {self.uri} names no sample of {dataset.uri}: its first is {first}"
                + (f", and that of the dataset is {there}; write them alike" if there else ", and the dataset is empty")
            )
        return matched

    def _first_of(self, dataset: Dataset) -> dict[str, Any]:
        """Return what names the first sample of a dataset; nothing if it has none."""
        for part in dataset.parts:
            if dataset.rows[part]:
                return read_table(dataset.uri, part, list(self.by)).slice(0, 1).to_pylist()[0]
        return {}

    def _by_part(self, dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
        """Yield the parts that the file names rows of."""
        if self.by == ("key",):
            yield from self._by_key(dataset)
            return
        shards = self.table.column("shard").combine_chunks().dictionary_encode()
        order = np.argsort(np.asarray(shards.indices), kind="stable")
        edges = np.searchsorted(np.asarray(shards.indices)[order], np.arange(len(shards.dictionary) + 1))
        places = {shard: order[edges[i] : edges[i + 1]] for i, shard in enumerate(shards.dictionary.to_pylist())}
        for part, shard in dataset.shards.items():
            if shard in places:
                named = self.table.take(places[shard])
                rows = read_table(dataset.uri, part, ["row"]).column("row")
                named = named.filter(pc.is_in(named.column("row"), value_set=flat(rows)))
                if named.num_rows:
                    yield part, named.select(["row", "truth"])

    def _by_key(self, dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
        keys, seen = flat(self.table.column("key")), np.zeros(self.table.num_rows, bool)
        for part in dataset.parts:
            table = read_table(dataset.uri, part, ["key", "row"])
            found = pc.index_in(table.column("key"), keys)
            places = np.asarray(found.drop_null())
            twice = places[seen[places]] if seen[places].any() else _repeated(places)
            if len(twice):
                raise TruthError(
                    f"--truth {self.uri} names the key {keys[int(twice[0])].as_py()}, which {dataset.uri} has more "
                    "than once; name samples by shard and row"
                )
            seen[places] = True
            if len(places):
                rows = table.column("row").filter(found.is_valid())
                yield part, pa.table({"row": flat(rows), "truth": flat(self.table.column("truth").take(places))})


def _read(uri: str) -> pa.Table:
    kind = uri.lower().rpartition(".")[2]
    if kind not in ("parquet", "csv"):
        raise TruthError(f"--truth {uri} must be a .parquet or .csv file")
    if not storage.exists(uri):
        raise TruthError(f"--truth {uri} does not exist; check the path")
    data = storage.read_bytes(uri)
    try:
        if kind == "parquet":
            return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
        text = {"key": pa.string(), "shard": pa.string(), "row": pa.int64(), ONE: pa.string(), SEVERAL: pa.string()}
        return read_csv(data, text)
    except (pa.ArrowException, OSError) as error:
        if storage.is_of_the_machine(error):
            raise
        raise TruthError(f"--truth {uri} cannot be read: {' '.join(str(error).split())}") from error


def _listed(text: str | None, uri: str) -> list[str] | None:
    """Read a list of classes: JSON, or names with bars between them; an empty text is an empty list."""
    if text is None or not text.startswith("["):
        return None if text is None else [name for name in text.split("|") if name]
    try:
        return [str(name) for name in json.loads(text)]
    except ValueError:
        raise TruthError(f"--truth {uri} holds {text!r}, which is no JSON list; write one, or cat|dog") from None


def _merged(table: pa.Table, by: tuple[str, ...], several: bool, uri: str) -> pa.Table:
    """Make one row of the rows of a sample."""
    unique = table.group_by(list(by), use_threads=False).aggregate([("truth", "count")])
    if unique.num_rows == table.num_rows:
        return table
    if several:
        raise TruthError(f"--truth {uri} names a sample twice: {_name(unique, by)}; write its classes into one list")
    table = table.group_by([*by, "truth"], use_threads=False).aggregate([])
    unique = table.group_by(list(by), use_threads=False).aggregate([("truth", "count")])
    if unique.num_rows < table.num_rows:
        raise TruthError(
            f"--truth {uri} gives two classes to {_name(unique, by)}; if samples have several, call the column classes "
            "and write them into one list"
        )
    return table


def _name(counted: pa.Table, by: tuple[str, ...]) -> str:
    twice = counted.filter(pc.greater(counted.column("truth_count"), 1)).slice(0, 1).to_pylist()[0]
    return ", ".join(f"{name} {twice[name]}" for name in by)


def _repeated(places: np.ndarray) -> np.ndarray:
    found, counts = np.unique(places, return_counts=True)
    return found[counts > 1]


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
