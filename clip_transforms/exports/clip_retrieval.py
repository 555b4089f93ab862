"""Write embeddings as `clip-retrieval inference` does, for its index and server, autofaiss and embedding-reader."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.groups import Group, padded
from clip_transforms.exports.rows import ExportRows, matrix_of
from clip_transforms.exports.vectors import NpyFile, RowsFile, new_file, plain

# Modality → folder, which is the beginning of its files' names too.
VECTORS = {"image": "img_emb", "caption": "text_emb"}
METADATA = "metadata"
ROWS_PER_FILE = 100_000  # a file ends with the part that reaches so many
# Its readers take these two names; the others may be anything.
_FIRST = {"key": "image_path", "caption": "caption"}
_ALSO = ("shard", "row", "width", "height", "image_sha256", "clip_score")


@dataclasses.dataclass(frozen=True)
class ClipRetrieval:
    """An export in clip-retrieval's layout. It is small and can be sent to workers.

    Attributes:
        rows: the rows that are taken; all have an embedding of each modality.
        output: URI of the export.
        scratch: URI of the run's temporary folder.
        files: number of files of each folder.
        modalities: `image`, `caption` or both.
        columns: names of the user's own columns.
        embed_dim: number of values of an embedding.
    """

    rows: ExportRows
    output: str
    scratch: str
    files: int
    modalities: tuple[str, ...]
    columns: tuple[str, ...]
    embed_dim: int

    def write(self, group: Group) -> int:
        """Write one file of each folder, unless all are there, with the same rows in the same order; their number.

        The metadata appear last.
        """
        name = f"_{padded(group.first, self.files)}"
        uris = {m: storage.join(self.output, VECTORS[m], f"{VECTORS[m]}{name}.npy") for m in self.modalities}
        metadata = storage.join(self.output, METADATA, f"{METADATA}{name}.parquet")
        if all(map(storage.exists, (metadata, *uris.values()))):
            return group.rows
        with contextlib.ExitStack() as files:
            rows = files.enter_context(RowsFile(files.enter_context(new_file(metadata, self.scratch))))
            vectors = {
                modality: files.enter_context(
                    NpyFile(
                        files.enter_context(new_file(uri, self.scratch)), (group.rows, self.embed_dim), np.dtype("<f2")
                    )
                )
                for modality, uri in uris.items()
            }
            for part, _ in group.parts:
                table = self._read(part)
                for modality, file in vectors.items():
                    file.add(matrix_of(table.column(f"{modality}_embedding")))
                rows.add(plain(table.drop_columns([f"{m}_embedding" for m in self.modalities]), _FIRST))
        return group.rows

    def _read(self, part: str) -> pa.Table:
        embeddings = [f"{modality}_embedding" for modality in self.modalities]
        return self.rows.table(part, [*_FIRST, *_ALSO, *self.columns, "metadata", *embeddings], with_labels=True)
