"""Write embeddings as one matrix a modality, and the rows that they belong to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.rows import ExportRows, matrix_of
from clip_transforms.exports.vectors import NpyFile, RowsFile, new_file, plain

FOLDER = "npy"
ROWS = "rows.parquet"
COLUMNS = ("key", "shard", "row", "caption", "clip_score")


@dataclasses.dataclass(frozen=True)
class Matrices:
    """The embeddings of an export that is written as a whole, by one worker; memory holds the rows of one part.

    Attributes:
        rows: the rows that are taken; all have an embedding of each modality.
        parts: (part, number of its rows that are taken), in the dataset's order.
        modalities: `image`, `caption` or both.
        embed_dim: number of values of an embedding.
        dtype: their type in the dataset.
        folder: URI of the folder that is written to.
        scratch: URI of the run's temporary folder.
    """

    rows: ExportRows
    parts: Sequence[tuple[str, int]]
    modalities: Sequence[str]
    embed_dim: int
    dtype: np.dtype
    folder: str
    scratch: str

    def of(self, modality: str) -> Iterator[np.ndarray]:
        """Yield the embeddings of each part, [n, d]."""
        for part, _ in self.parts:
            yield matrix_of(self.rows.table(part, [f"{modality}_embedding"]).column(0))

    def write_rows(self) -> None:
        """Write `rows.parquet`: key, shard and row, caption and score, in the order of the embeddings."""
        with self.new_file(ROWS) as local, RowsFile(local) as file:
            for part, _ in self.parts:
                file.add(plain(self.rows.table(part, COLUMNS)))
            if not self.parts:
                types = (pa.string(), pa.string(), pa.int64(), pa.string(), pa.float32())
                file.add(pa.table({n: pa.array([], type_) for n, type_ in zip(COLUMNS, types, strict=True)}))

    def new_file(self, name: str) -> contextlib.AbstractContextManager[str]:
        """Yield the path of a local file that appears in the folder if the block ends well."""
        return new_file(storage.join(self.folder, name), self.scratch)


def write_npy(matrices: Matrices) -> None:
    """Write `<modality>_embeddings.npy` and `rows.parquet`, whose row k belongs to row k of each matrix."""
    shape = (sum(count for _, count in matrices.parts), matrices.embed_dim)
    for modality in matrices.modalities:
        with (
            matrices.new_file(f"{modality}_embeddings.npy") as local,
            NpyFile(local, shape, matrices.dtype) as file,
        ):
            for embeddings in matrices.of(modality):
                file.add(embeddings)
    matrices.write_rows()
