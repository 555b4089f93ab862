"""The vectors of one part, a row group at a time: memory does not depend on the length of the part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow.parquet as pq

from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.list_pages import read_embeddings
from clip_transforms.parts.reader import DatasetError, as_sentence, open_part
from schemas.provenance import decode_footer


@dataclasses.dataclass(frozen=True)
class RowVectors:
    """Vectors of consecutive rows of a part.

    Attributes:
        first: place in the part of the first row.
        rows: int64 [n], places in the shard.
        valid: bool [n], which of the rows have all the columns.
        values: float32 or float16 [m, c, d] as stored: c columns of the m valid rows.
    """

    first: int
    rows: np.ndarray
    valid: np.ndarray
    values: np.ndarray


def read_vectors(
    output: str, part: str, digest: str, columns: Sequence[str], wanted: np.ndarray | None = None
) -> Iterator[RowVectors]:
    """Read the vectors of a part.

    Args:
        output: URI of the dataset.
        part: name of the part.
        digest: digest that was seen in it earlier.
        columns: `image_embedding` or `caption_embedding`, or both.
        wanted: bool [rows of the part]; row groups without a wanted row are passed over.
    Yields:
        The rows in the order of the part.
    Raises:
        DatasetError: if the part is gone, damaged, or another one by now.
    """
    uri, first = part_uri(output, "embeddings", part), 0
    with as_sentence(output, part), open_part(uri) as opened:
        file = pq.ParquetFile(opened)
        footer = decode_footer(file.metadata.metadata, uri) or {}
        if footer.get("digest") != digest:
            raise DatasetError(
                f"{uri} was replaced while this command read the dataset; give the command again when nothing writes "
                "to the dataset"
            )
        d = int(footer.get("provenance", {}).get("embed_dim", 0))
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if wanted is None or wanted[first:stop].any():
                yield _row_group(file, opened, group, first, columns, d)
            first = stop


def _row_group(
    file: pq.ParquetFile, opened: IO[bytes], group: int, first: int, columns: Sequence[str], d: int
) -> RowVectors:
    rows = file.read_row_group(group, ["row"], use_threads=False).column("row").to_numpy()
    lists = [read_embeddings(file, opened, group, name, d) for name in columns]
    valid = np.logical_and.reduce([of.valid for of in lists])
    matrices = [of.values if len(of.values) == valid.sum() else of.values[valid[of.valid]] for of in lists]
    values = matrices[0][:, None] if len(matrices) == 1 else np.stack(matrices, axis=1)
    return RowVectors(first, rows, valid, values)
