"""The rows of one part, with their labels beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.footers import part_uri
from schemas.embeddings import EMBEDDINGS
from schemas.provenance import decode_footer


class DatasetError(ValueError):
    """A dataset that cannot be read as one, in one sentence."""


def read_part(
    output: str, part: str, columns: Sequence[str] | None = None, taxonomies: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Read the rows of one part, with labels beside them.

    Args:
        output: URI of the dataset.
        part: its name.
        columns: of the embeddings, all by default; of labels, `<taxonomy>.label` and the like.
        taxonomies: whose labels are joined, as columns `<taxonomy>.label`, `.probability`, `.similarity`, `.margin`
            and `.top`.
    Yields:
        Batches; embeddings are FixedSizeList of d float32 or float16.
    Raises:
        DatasetError: if embeddings and labels do not belong together.
    """
    tables = [_open_part(output, "embeddings", part), *(_open_part(output, f"labels/{t}", part) for t in taxonomies)]
    digests = {table.schema.metadata[b"digest"] for table in tables}
    if len(digests) > 1:
        raise DatasetError(
            f"the labels of {part} in {output} were made from other embeddings; run the same command again"
        )
    joined = tables[0]
    for taxonomy, labels in zip(taxonomies, tables[1:], strict=True):
        for field in labels.schema:
            if field.name not in ("key", "shard", "row"):
                joined = joined.append_column(f"{taxonomy}.{field.name}", labels.column(field.name))
    if columns is not None:
        if unknown := [name for name in columns if name not in joined.schema.names]:
            raise DatasetError(f"{output} has no column {unknown[0]}; it has {', '.join(joined.schema.names)}")
        joined = joined.select(list(columns))
    d = int(tables[0].schema.metadata[b"embed_dim"])
    for batch in joined.replace_schema_metadata(None).to_batches():
        yield fixed_size(batch, d)


def _open_part(output: str, kind: str, part: str) -> pa.Table:
    with storage.open_input(part_uri(output, kind, part)) as file:
        # Not pq.read_table: its thread pool now and then aborts the process at exit when it read a Python file.
        table = pq.ParquetFile(file).read(use_threads=False)
    footer = decode_footer(table.schema.metadata) or {}
    d = footer.get("provenance", {}).get("embed_dim", 0)
    return table.replace_schema_metadata({"digest": footer.get("digest", ""), "embed_dim": str(d)})


def fixed_size(batch: pa.RecordBatch, d: int) -> pa.RecordBatch:
    """The same rows with embeddings as FixedSizeList of d, which reads as a matrix."""
    for name in EMBEDDINGS:
        if name in batch.schema.names:
            place = batch.schema.names.index(name)
            lists = batch.column(place)
            batch = batch.set_column(place, name, lists.cast(pa.list_(lists.type.value_type, d)))
    return batch
