"""ReadEmbeddings: a finished dataset → Arrow batches, the door for people's own steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.dataset import check_dataset
from clip_transforms.parts.reader import read_part


def read_embeddings(
    dataset: str, columns: Sequence[str] | None = None, labels: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Read a dataset, part by part.

    Args:
        dataset: URI of the folder that `EmbedShards` wrote.
        columns: which, all by default; of labels `<taxonomy>.label`, `.probability`, `.similarity`, `.margin`, `.top`.
        labels: taxonomies whose labels are joined.
    Yields:
        Record batches in the order of the parts' names; embeddings are FixedSizeList of d values.
    Raises:
        DatasetError: if it is no dataset, holds two fingerprints, or labels and embeddings do not belong together.
    """
    dataset = storage.normalise(dataset)
    for part in check_dataset(dataset, labels):
        yield from read_part(dataset, part, columns, labels)


class ReadEmbeddings(beam.PTransform):
    """Pipeline → PCollection[pa.RecordBatch]: the batches of `read_embeddings`, in no order."""

    def __init__(self, dataset: str, columns: Sequence[str] | None = None, labels: Sequence[str] = ()):
        """See `read_embeddings` for the arguments; the dataset is checked when the transform is applied."""
        super().__init__()
        self._dataset, self._columns, self._labels = dataset, columns, tuple(labels)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[pa.RecordBatch]:
        """One element a part, spread over the workers, read where it is used."""
        dataset = storage.normalise(self._dataset)
        return (
            pipeline
            | beam.Create(check_dataset(dataset, self._labels))
            | beam.Reshuffle()
            | beam.FlatMap(lambda part, *args: read_part(dataset, part, *args), self._columns, self._labels)
        )
