"""The last step of a search that shows its results on a page: look at the pictures that were found."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.pages.found_page import MOST_ROWS, found_page
from clip_transforms.pages.looked import COLUMNS, NOT_LOST, Looks, Thumbnails, look_at
from clip_transforms.parts.reader import read_table
from clip_transforms.run.over_parts import Step
from clip_transforms.run.search_files import FOUND_ROWS, parts_of, read_array
from clip_transforms.select.results import RESULTS, read_results
from clip_transforms.shards.read_again import Sources
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.shards.wanted import Wanted


@dataclasses.dataclass(frozen=True)
class Page:
    """A page that was asked for. It is small and can be sent to workers.

    Attributes:
        uri: URI of the page.
        reader: how the sources were read.
        thumbnails: how pictures are decoded.
        asked: the conditions of the search, in words.
    """

    uri: str
    reader: ReaderOptions
    thumbnails: Thumbnails
    asked: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShowFound(Step):
    """Counts of a search → how many pictures of the page are lost.

    Attributes:
        dataset: URI of the dataset.
        output: URI of the output, which has the results.
        page: the page.
        folder: URI of the run's temporary folder.
    """

    dataset: str
    output: str
    page: Page
    folder: str

    def items(self, state: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Yield the one item: the counts."""
        yield dict(state)

    def do(self, item: dict[str, int]) -> Counter:
        """Write the page."""
        results = read_results(storage.join(self.output, RESULTS)).slice(0, MOST_ROWS).to_pylist()
        places = read_array(storage.join(self.folder, FOUND_ROWS))[:MOST_ROWS]
        looked: dict[tuple[str, int], Mapping[str, Any]] = {}
        parts = parts_of(self.folder)
        with Sources(self.page.reader) as sources:
            for part in np.unique(places["part"]).tolist():
                name, digest = parts[part]
                for row in self._look(name, digest, places["row"][places["part"] == part], sources):
                    looked[row["shard"], row["row"]] = row
        page = found_page(self.dataset, results, looked, {**item, "asked": self.page.asked})
        storage.make_folder(posixpath.dirname(self.page.uri))
        storage.write_bytes(self.page.uri, page, self.folder)
        return Counter(lost=sum(1 for row in looked.values() if row["lost"] not in NOT_LOST))

    def _look(self, part: str, digest: str, rows: np.ndarray, sources: Sources) -> list[dict[str, Any]]:
        """Return some rows of a part, with small pictures."""
        table = read_table(self.dataset, part, COLUMNS, made_from={"embeddings": digest})
        table = table.filter(pa.array(np.isin(table.column("row").to_numpy(), rows)))
        none = np.zeros(table.num_rows, bool)
        looks = Looks(~none, none, none, none.astype(np.uint64))

        def read(wanted: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, bytes | None, str]]:
            shard = table.column("shard")[0].as_py()
            return iter(sources.pictures(part, shard, [Wanted(*one) for one in wanted]))

        return look_at(table, looks, "", self.page.thumbnails, read).to_pylist()

    def after(self, state: Mapping[str, int], total: Counter) -> dict[str, int]:
        """Add the number of lost pictures."""
        return {**state, "lost": total["lost"]}
