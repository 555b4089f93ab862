"""Write embeddings as an exact faiss index, and the rows that its ids mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.exports.extras import import_extra
from clip_transforms.exports.npy import Matrices

FOLDER = "faiss"


def write_faiss(matrices: Matrices) -> None:
    """Write `<modality>.index`, whose inner products are cosines, and `rows.parquet`, whose row k is the id k.

    faiss holds an index in memory while it is built: 4 bytes a value, or 2 where the dataset stores float16.
    """
    faiss: Any = import_extra("faiss")
    for modality in matrices.modalities:
        index = faiss.IndexFlatIP(matrices.embed_dim)
        if matrices.dtype == np.float16:
            kind = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexScalarQuantizer(matrices.embed_dim, kind, faiss.METRIC_INNER_PRODUCT)
        for embeddings in matrices.of(modality):
            index.add(np.ascontiguousarray(embeddings, np.float32))
        with matrices.new_file(f"{modality}.index") as local, storage.open_output(local) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    matrices.write_rows()
