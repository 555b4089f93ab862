"""The rows that an export takes: those of a selection that have what the layout needs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.parts.reader import read_table

LABEL_FIELDS = ("label", "probability", "similarity", "margin")  # of each taxonomy; `top` stays in the dataset


class Selects(Protocol):
    """A selection of rows; `select.selection.Selection` is one."""

    def mask(self, part: str, rows: pa.ChunkedArray) -> np.ndarray:
        """Return bool [n]: which rows of a part are in the selection."""


@dataclasses.dataclass(frozen=True)
class ExportRows:
    """The rows of an export. It is small and can be sent to workers.

    Attributes:
        dataset: URI of the dataset.
        selection: which rows are taken.
        needed: columns that must not be null, such as `image_embedding`; other rows are left out.
        taxonomies: taxonomies whose labels go along.
    """

    dataset: str
    selection: Selects
    needed: tuple[str, ...] = ()
    taxonomies: tuple[str, ...] = ()

    def count(self, part: str) -> Counter:
        """Count the rows of a part: `selected`, `taken`, and those that lack a column, as `without <column>`."""
        # The score is null unless both embeddings are there, and much smaller than they are.
        columns = ("clip_score",) if set(self.needed) == {"image_embedding", "caption_embedding"} else self.needed
        table = self._selected(part, columns)
        taken, counts = np.ones(table.num_rows, bool), Counter(selected=table.num_rows)
        for name in columns:
            has = table.column(name).is_valid().to_numpy()
            what = "both embeddings" if name == "clip_score" else name.replace("_", " ")
            counts[f"without {what}"] += int((taken & ~has).sum())
            taken &= has
        counts["taken"] = int(taken.sum())
        return counts

    def table(self, part: str, columns: Sequence[str], with_labels: bool = False) -> pa.Table:
        """Read the rows of a part that are taken.

        Args:
            part: name of the part.
            columns: columns of the embeddings.
            with_labels: whether the columns of the labels are read too, as `<taxonomy>.label` and so on.
        Returns:
            The columns, in the order of the part; embeddings are FixedSizeList.
        """
        labels = [f"{taxonomy}.{field}" for taxonomy in self.taxonomies for field in LABEL_FIELDS]
        wanted = [*columns, *(labels if with_labels else ())]
        table = self._selected(part, [*wanted, *(name for name in self.needed if name not in wanted)])
        for name in self.needed:
            table = table.filter(table.column(name).is_valid())
        return table.select(wanted)

    def _selected(self, part: str, columns: Sequence[str]) -> pa.Table:
        names = list(dict.fromkeys([*columns, "row"]))
        taxonomies = [taxonomy for taxonomy in self.taxonomies if any(n.startswith(f"{taxonomy}.") for n in columns)]
        table = read_table(self.dataset, part, names, taxonomies)
        return table.filter(pa.array(self.selection.mask(part, table.column("row"))))


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return embeddings without nulls as an array [n, d] of their type."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # of no chunks
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], column.type)
    assert lists.null_count == 0  # `flatten` would drop them, and the rows would shift
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
