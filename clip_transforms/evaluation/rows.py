"""The rows of a part that are evaluated, with their vectors, truth and groups."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from clip_transforms.evaluation.truth import Truth, flat
from clip_transforms.parts.reader import read_table


class Selects(Protocol):
    """A selection of rows; `select.selection.Selection` is one."""

    def mask(self, part: str, rows: pa.ChunkedArray) -> np.ndarray:
        """Return bool [n]: which rows of a part are in the selection."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where rows come from. It is small and can be sent to workers.

    Attributes:
        dataset: URI of the dataset.
        selection: which rows are looked at.
        truth: where their right classes are found; None if they have none.
        group_column: the column whose values are groups; None for no groups.
    """

    dataset: str
    selection: Selects
    truth: Truth | None
    group_column: str | None

    def read(self, part: str, digest: str, vectors: str, also: Sequence[str] = ()) -> Rows:
        """Read the rows of a part.

        Args:
            part: name of the part.
            digest: its digest when the command began.
            vectors: the embedding that a row must have, `image_embedding` or `caption_embedding`.
            also: columns to read besides.
        Raises:
            DatasetError: if the part has changed.
        """
        own = [self.group_column, self.truth.column if self.truth else None]
        names = sorted({"shard", "row", vectors, *also, *(name for name in own if name)})
        table = read_table(self.dataset, part, names, made_from={"embeddings": digest})
        selected = self.selection.mask(part, table.column("row"))
        matrix, has = unit_vectors(table.column(vectors), selected)
        left_out = int((selected & ~has).sum())
        counts = Counter(seen=len(has), not_selected=int((~selected).sum()), without_embedding=left_out)
        truth = self.truth.read(part, table) if self.truth else None
        keep = pa.array(has)
        groups = self._groups(table, keep)
        if groups is not None:
            counts["without_group"] = groups.count(None)
        found = None if truth is None else truth.filter(keep)
        return Rows(table.drop_columns([vectors]).filter(keep), matrix, found, groups, counts)

    def _groups(self, table: pa.Table, keep: pa.Array) -> list[str | None] | None:
        if self.group_column is None:
            return None
        return flat(table.column(self.group_column)).filter(keep).cast(pa.string()).to_pylist()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one part.

    Attributes:
        table: n rows with `shard`, `row` and what was asked for.
        vectors: float32 [n, d], of length 1.
        truth: string or list<string> [n], the right classes; None if there is no truth.
        groups: n names, None where a row has none; None if there are no groups.
        counts: `seen`, `not_selected` and `without_embedding`; what is left is n. With groups also `without_group`, how
            many of the n rows are in none.
    """

    table: pa.Table
    vectors: np.ndarray
    truth: pa.Array | None
    groups: list[str | None] | None
    counts: Counter


def unit_vectors(column: pa.ChunkedArray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings scaled to length 1.

    Args:
        column: embeddings of n rows, FixedSizeList of float32 or float16.
        wanted: bool [n], the rows that are asked for.
    Returns:
        float32 [m, d], of the rows that are wanted and have an embedding; and bool [n], which these are. An embedding
        whose length is 0 or not finite is none.
    """
    has = wanted & np.asarray(column.is_valid())
    stored = flat(column.filter(pa.array(has)))
    values = (
        stored.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(stored), column.type.list_size)
    )
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    usable = (lengths[:, 0] > 0) & np.isfinite(lengths[:, 0])
    has[np.flatnonzero(has)[~usable]] = False
    return values[usable] / lengths[usable], has
