"""The one step of an index: draw a sample, put all vectors into the index, and measure how much it finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.vectors import new_file
from clip_transforms.parts.reader import KEYS, read_table
from clip_transforms.parts.vectors import read_vectors
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import Once, Step, read_items
from clip_transforms.select.index_folder import INDEX, QUERIES, ROWS, RowsWriter
from clip_transforms.select.sample import hashes
from clip_transforms.select.selection import Selection
from clip_transforms.select.top_k import ROW, TopK
from clip_transforms.select.vector_index import how_many_trained, import_faiss, new_index, recall, tune
from schemas.samples import MODALITIES

_ASKED = 200  # rows that tune the index, and as many that measure it
_TWINS = 64  # rows as near as the tenth that are looked for
Part = Sequence[str]  # name, digest, shard


@dataclasses.dataclass(frozen=True)
class Indexing:
    """One run; it is sent to the worker.

    Attributes:
        new: the output.
        dataset: URI of the dataset.
        selection: which rows are in the index.
        against: whose embeddings it holds, `image` or `caption`.
        kind: `flat`, `hnsw` or `ivf`.
        d: number of values of an embedding.
        most_rows: a bound of its number of rows.
        seed: seed of the sample and of the lists.
        folder: URI of the run's temporary folder.
    """

    new: NewOutput
    dataset: str
    selection: Selection
    against: str
    kind: str
    d: int
    most_rows: int
    seed: int
    folder: str

    @property
    def steps(self) -> list[Step]:
        """Do everything on one worker: an index is one file."""
        return [Once(self._build)]

    def finish(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write `index.json` and `_SUCCESS`."""
        made_by = {name: value for name, value in self.new.command.items() if name not in ("format", "digest")}
        content = {"made_by": made_by, "digest": self.new.command["digest"], **state}
        return self.new.finish(content, self.folder)

    def _build(self) -> dict[str, Any]:
        sample = self._sample(max(2 * _ASKED, how_many_trained(self.kind, self.most_rows)))
        index = new_index(self.kind, self.d, self.most_rows, sample["vector"], self.seed)
        tuning, measuring = self._asked(sample[:_ASKED]), self._asked(sample[_ASKED : 2 * _ASKED])
        self._fill(index, [*tuning.values(), *measuring.values()])
        effort = tune(index, [(of.queries, of.found) for of in tuning.values()])
        found = {name: recall(index, of.queries, of.found, effort) for name, of in measuring.items()}
        faiss = import_faiss()
        with new_file(storage.join(self.new.uri, INDEX), self.folder) as local, storage.open_output(local) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        self._write_queries(sample[_ASKED : 2 * _ASKED])
        asked = {name: len(of.queries) for name, of in measuring.items()}
        return {"kind": self.kind, "rows": index.ntotal, "effort": effort, "recall_at_10": found, "queries": asked}

    def _vectors(self, part: Part, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield places in the part of some rows that have an embedding, int64 [m], and the embeddings, [m, d]."""
        for found in read_vectors(self.dataset, part[0], part[1], [f"{self.against}_embedding"], wanted):
            stays = found.valid & wanted[found.first : found.first + len(found.valid)]
            yield found.first + np.flatnonzero(stays), found.values[stays[found.valid], 0]

    def _rows(self, part: Part) -> tuple[pa.Table, np.ndarray]:
        """Return the names of the rows of a part, and which of them are selected."""
        table = read_table(self.dataset, part[0], KEYS, made_from={"embeddings": part[1]})
        return table, self.selection.mask(part[0], table.column("row"))

    def _sample(self, count: int) -> np.ndarray:
        """Draw rows at random: records, in random order."""
        dtype = np.dtype([("hash", "<u8"), ("part", "<i4"), ("place", "<i8"), ("vector", "<f4", self.d)])
        records = [np.empty(0, dtype)]
        least = np.uint64(min(1.0, 1.1 * count / max(1, self.most_rows)) * (2.0**64 - 2**11))
        for number, part in enumerate(read_items(self.folder)):
            table, wanted = self._rows(part)
            own = hashes(part[2], table.column("row").to_numpy(), self.seed)
            for places, vectors in self._vectors(part, wanted & (own <= least)):
                some = np.empty(len(places), dtype)
                some["hash"], some["part"], some["place"], some["vector"] = own[places], number, places, vectors
                records.append(some)
        found = np.concatenate(records)
        return found[np.argsort(found["hash"], kind="stable")][:count]

    def _asked(self, sample: np.ndarray) -> dict[str, TopK]:
        """Return the queries of some rows: modality → their own embeddings, and those of the other modality."""
        found = {self.against: sample["vector"]}
        (other,) = (name for name in MODALITIES if name != self.against)
        vectors = [np.empty((0, 1, self.d), np.float32)]
        for number, part in enumerate(read_items(self.folder)):
            if len(places := sample["place"][sample["part"] == number]):
                wanted = np.zeros(places.max() + 1, bool)
                wanted[places] = True
                for of in read_vectors(self.dataset, part[0], part[1], [f"{other}_embedding"], wanted):
                    mine = np.zeros(len(of.valid), bool)
                    mine[places[(places >= of.first) & (places < of.first + len(mine))] - of.first] = True
                    vectors.append(of.values[mine[of.valid]].astype(np.float32))
        found[other] = np.concatenate(vectors)[:, 0]
        return {name: TopK(np.ascontiguousarray(of), _TWINS) for name, of in found.items() if len(of)}

    def _fill(self, index: Any, asked: Sequence[TopK]) -> None:
        """Put the vectors into the index, their names beside it, and look for the nearest rows of the queries."""
        with new_file(storage.join(self.new.uri, ROWS), self.folder) as local, RowsWriter(local) as names:
            for part in read_items(self.folder):
                table, wanted = self._rows(part)
                for places, vectors in self._vectors(part, wanted):
                    rows = np.zeros(len(places), ROW)
                    rows["row"] = index.ntotal + np.arange(len(places))
                    for top in asked:
                        top.add(rows, vectors)
                    index.add(np.ascontiguousarray(vectors, np.float32))
                    names.add(table.take(pa.array(places)), part[0])

    def _write_queries(self, sample: np.ndarray) -> None:
        """Write which rows measured the recall."""
        with new_file(storage.join(self.new.uri, QUERIES), self.folder) as local, RowsWriter(local) as names:
            for number, part in enumerate(read_items(self.folder)):
                if len(places := np.sort(sample["place"][sample["part"] == number])):
                    names.add(self._rows(part)[0].take(pa.array(places)), part[0])
