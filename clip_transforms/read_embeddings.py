"""ReadEmbeddings and read_embeddings: a finished dataset → Arrow batches, the door for people's own steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset, check_labels, check_rows
from clip_transforms.parts.reader import known_rows, read_table
from clip_transforms.run.beam import beam


def read_embeddings(
    dataset: storage.Place,
    columns: str | Sequence[str] | None = None,
    labels: str | Sequence[str] = (),
    rows: str = "embeddings",
) -> Iterator[pa.RecordBatch]:
    """Read a dataset, part by part, without Beam. It is `Dataset.open(dataset).batches(columns, labels, rows)`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        columns: columns to read, one or several, all by default; those of labels are called `<taxonomy>.label`,
            `.probability`, `.similarity`, `.margin` and `.top`.
        labels: taxonomies whose labels are joined, one or several.
        rows: `embeddings` for a row per sample, or `captions` for a row per caption, if the dataset was made with
            `--captions all`.
    Returns:
        Record batches in the order of the parts; embeddings are FixedSizeList of d values.
    Raises:
        DatasetError: if it is no dataset, holds two fingerprints, or files of a part do not belong together.
    """
    return Dataset.open(storage.as_uri(dataset, "dataset")).batches(columns, labels, rows)


class ReadEmbeddings(beam.PTransform):
    """Pipeline → PCollection[pa.RecordBatch]: the batches of `read_embeddings`, in any order."""

    def __init__(
        self,
        dataset: storage.Place,
        columns: str | Sequence[str] | None = None,
        labels: str | Sequence[str] = (),
        rows: str = "embeddings",
    ):
        """Keep the arguments, which are those of `read_embeddings`; applying the transform checks the dataset."""
        super().__init__()
        self._dataset = storage.as_uri(dataset, "dataset")
        self._columns = None if columns is None else storage.as_names(columns, "columns")
        self._labels = storage.as_names(labels, "labels")
        self._rows = known_rows(rows)

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        """Create one element a part, spread them over the workers, and read each part where it is used."""
        dataset = Dataset.open(self._dataset)
        check_rows(dataset.uri, dataset.parts, self._rows)
        check_labels(dataset.uri, dataset.digests, self._labels)
        return (
            pipeline
            | beam.Create(dataset.parts)
            | beam.Reshuffle()
            | beam.FlatMap(_read_batches, dataset.uri, self._columns, self._labels, self._rows)
        )


def _read_batches(
    part: str, dataset: str, columns: Sequence[str] | None, labels: Sequence[str], rows: str
) -> Iterator[pa.RecordBatch]:
    yield from read_table(dataset, part, columns, labels, rows).to_batches()
