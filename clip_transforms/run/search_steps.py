"""The steps of a search: embed the queries, look at every part, then describe the rows that were found."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms import storage
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.parts.vectors import read_vectors
from clip_transforms.run.found_step import Page, ShowFound
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import Once, Step, read_items
from clip_transforms.run.search_files import FOUND_ROWS, QUERIES, VECTORS, Part, parts_of, read_array, write_array
from clip_transforms.select.filtering import Filter
from clip_transforms.select.index_folder import INDEX, IndexFolder
from clip_transforms.select.queries import embed_queries, read_names
from clip_transforms.select.results import RESULTS, described, write_results
from clip_transforms.select.top_k import FOUND, NOTHING, ROW, Rows, TopK, best
from clip_transforms.select.vector_index import open_index, search_index

_AT_ONCE = threading.BoundedSemaphore(6)  # searches in a process, of some 60 MB each, however many cores there are


@dataclasses.dataclass(frozen=True)
class Searching:
    """One run; it is sent to every worker.

    Attributes:
        new: the output.
        rows: which rows are searched; None for all.
        dataset: URI of the dataset.
        columns: embeddings that are compared.
        top_k: rows a query.
        classes: taxonomy whose labels go along → digest of its classes.
        checkpoint: what embeds the queries.
        folder: URI of the run's temporary folder.
        index: the index that is asked; None for an exact search.
        page: the page that shows what was found; None without one.
    """

    new: NewOutput
    rows: Filter | None
    dataset: str
    columns: tuple[str, ...]
    top_k: int
    classes: Mapping[str, str]
    checkpoint: Checkpoint | None
    folder: str
    index: IndexFolder | None
    page: Page | None

    @property
    def steps(self) -> list[Step]:
        """Embed the queries, search, and write what was found."""
        search = _SearchIndex(self) if self.index else _Search(self)
        show = [ShowFound(self.dataset, self.new.uri, self.page, self.folder)] if self.page else []
        return [Once(self._embed), search, _Describe(self), *show]

    def _embed(self) -> int:
        vectors = embed_queries(self.file(QUERIES), self.checkpoint)
        write_array(self.file(VECTORS), vectors, self.folder)
        return len(vectors)

    def file(self, name: str) -> str:
        """URI of a file in the run's folder."""
        return storage.join(self.folder, name)

    def finish(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write `search.json` and `_SUCCESS`."""
        made_by = {name: value for name, value in self.new.command.items() if name not in ("format", "digest")}
        counts = {name: number for name, number in state.items() if name != "lost"}
        page = {"page": {"html": self.page.uri, "lost": state["lost"]}} if self.page else {}
        return self.new.finish({"made_by": made_by, "counts": counts, **page}, self.folder)


@dataclasses.dataclass(frozen=True)
class _Search(Step):
    """Group of parts → its best rows, and counts."""

    run: Searching
    threaded = True

    def items(self, state: int) -> Iterator[list[Part]]:
        return read_items(self.run.folder)

    def do(self, item: list[Part]) -> tuple[np.ndarray, Counter]:
        with _AT_ONCE:
            return self._search(item)

    def _search(self, item: list[Part]) -> tuple[np.ndarray, Counter]:
        run, counts = self.run, Counter[str]()
        top = TopK(read_array(run.file(VECTORS)), run.top_k)
        waiting = Rows(top)
        for part in item:
            for rows, values in self._rows(part, counts):
                waiting.add(rows, values)
        waiting.flush()
        return top.found, counts

    def _rows(self, part: Part, counts: Counter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of a part that are searched, and their vectors."""
        run, (name, digest, number, shard) = self.run, part
        wanted = None
        if run.rows is not None:
            left = run.rows.candidates(run.dataset, [(name, digest)], all_rows=True).left
            wanted = np.zeros(left.starts[-1], bool)
            wanted[left.places] = True
            counts["selected"] += len(left.places)
        for found in read_vectors(run.dataset, name, digest, run.columns, wanted):
            stays = found.valid
            if wanted is not None:
                stays = stays & wanted[found.first : found.first + len(stays)]
            else:
                counts["selected"] += len(stays)
            values = found.values if stays.sum() == len(found.values) else found.values[stays[found.valid]]
            rows = np.empty(len(values), ROW)
            rows["shard"], rows["row"], rows["part"] = shard, found.rows[stays], number
            counts["compared"] += len(rows)
            yield rows, values.reshape(len(values), values.shape[1] * values.shape[2])

    def add(self, summaries: Iterable[tuple[np.ndarray, Counter]]) -> tuple[np.ndarray, Counter]:
        found, counts = NOTHING, Counter[str]()
        for some, of in summaries:
            found = best(np.concatenate([found, some]), self.run.top_k)
            counts.update(of)
        return found, counts

    def after(self, state: int, total: tuple[np.ndarray, Counter]) -> dict[str, int]:
        found, counts = total
        write_array(self.run.file(FOUND_ROWS), found, self.run.folder)
        return {"queries": state, **{name: counts[name] for name in ("selected", "compared")}}


@dataclasses.dataclass(frozen=True)
class _SearchIndex(_Search):
    """All parts → the rows that the index finds, and counts. One worker asks the index."""

    def items(self, state: int) -> Iterator[list[Part]]:
        yield [part for group in read_items(self.run.folder) for part in group]

    def do(self, item: list[Part]) -> tuple[np.ndarray, Counter]:
        run, folder = self.run, self.run.index
        assert folder is not None
        allowed = folder.allowed(self._selected(item)) if run.rows else None
        queries = read_array(run.file(VECTORS))
        with storage.local_copy(storage.join(folder.uri, INDEX)) as path:
            similarities, ids = search_index(
                open_index(path), queries, min(run.top_k, folder.rows), folder.effort, allowed
            )
        query, rank = np.nonzero(ids >= 0)
        names = folder.rows_of(ids[query, rank])
        places = {part: (number, shard) for part, _, number, shard in item}
        found = np.empty(len(query), FOUND)
        found["query"], found["similarity"] = query, similarities[query, rank]
        found["row"] = names.column("row")
        for part in names.column("part").unique().to_pylist():
            own = pc.equal(names.column("part").cast(pa.string()), part).to_numpy()
            found["part"][own], found["shard"][own] = places[part]
        rows = folder.rows if allowed is None else int(np.count_nonzero(allowed))
        return best(found, run.top_k), Counter(selected=rows, compared=rows)

    def _selected(self, parts: list[Part]) -> dict[str, np.ndarray]:
        """Return part → places in the shard of the rows that may be found."""
        selected = {}
        for name, digest, *_ in parts:
            assert self.run.rows is not None
            left = self.run.rows.candidates(self.run.dataset, [(name, digest)], ["row"], all_rows=True).left
            selected[name] = left.tables[name].column("row").to_numpy()[left.places]
        return selected


@dataclasses.dataclass(frozen=True)
class _Describe(Step):
    """Nothing → (URI of the results, number of rows)."""

    run: Searching

    def items(self, state: Mapping[str, int]) -> list[None]:
        return [None]

    def do(self, item: None) -> tuple[str, int]:
        run = self.run
        names = read_names(run.file(QUERIES))
        table = described(
            run.dataset,
            parts_of(run.folder),
            read_array(run.file(FOUND_ROWS)),
            names,
            run.classes,
        )
        write_results(uri := storage.join(run.new.uri, RESULTS), table, run.folder)
        return uri, table.num_rows

    def summarise(self, result: tuple[str, int]) -> Counter:
        return Counter(results=result[1])

    def after(self, state: Mapping[str, int], total: Counter) -> dict[str, int]:
        return {**state, "results": total["results"]}
