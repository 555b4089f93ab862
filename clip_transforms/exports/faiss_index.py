"""Write embeddings as an exact faiss index, and the rows that its ids mean."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.exports.npy import COLUMNS, ROWS, no_rows
from clip_transforms.exports.rows import ExportRows, matrix_of
from clip_transforms.exports.vectors import RowsFile, new_file, plain

FOLDER = "faiss"


def import_faiss() -> ModuleType:
    """Import faiss.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import faiss
    except ImportError:
        cure = "pip install 'clip-transforms[search]'"
        raise ValueError(f"--as faiss needs a package that is not installed: {cure}") from None
    return faiss


def write_faiss(
    rows: ExportRows,
    parts: Sequence[tuple[str, int]],
    shape: tuple[int, np.dtype],
    modalities: Sequence[str],
    places: tuple[str, str],
) -> None:
    """Write `<modality>.index`, whose inner products are cosines, and `rows.parquet`, whose row k is the id k.

    faiss holds an index in memory while it is built: 4 bytes a value, or 2 where the dataset stores float16.

    Args:
        rows: the rows that are taken; all have an embedding of each modality.
        parts: (part, number of its rows that are taken), in the dataset's order.
        shape: the number of values of an embedding, and their type, float32 or float16.
        modalities: `image`, `caption` or both.
        places: URI of the export, and of the run's temporary folder.
    """
    faiss = import_faiss()
    output, scratch = places
    for modality in modalities:
        index = _empty(faiss, *shape)
        for part, _ in parts:
            vectors = matrix_of(rows.table(part, [f"{modality}_embedding"]).column(0))
            index.add(np.ascontiguousarray(vectors, np.float32))
        with new_file(storage.join(output, FOLDER, f"{modality}.index"), scratch) as local:
            faiss.write_index(index, local)
    with contextlib.ExitStack() as files:
        uri = storage.join(output, FOLDER, ROWS)
        listed = files.enter_context(RowsFile(files.enter_context(new_file(uri, scratch))))
        for part, _ in parts:
            listed.add(plain(rows.table(part, COLUMNS)))
        if not parts:
            listed.add(no_rows())


def _empty(faiss: ModuleType, d: int, dtype: np.dtype) -> Any:
    if dtype == np.float16:
        return faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(d)
