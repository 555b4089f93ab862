"""Check that the parts of a dataset belong together, and read them with `Dataset`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.counts import add, counted
from clip_transforms.parts.fingerprint import fingerprint
from clip_transforms.parts.footers import (
    column_names,
    part_names,
    part_stamps,
    part_uri,
    read_footers,
    taxonomy_names,
)
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.parts.reader import KEYS, DatasetError, known_rows, read_table
from schemas.labels import taken_names
from schemas.provenance import Footer
from schemas.samples import MODALITIES

_LOGGER = logging.getLogger(__name__)


def check_dataset(output: str) -> dict[str, Footer]:
    """Read the footers of a dataset whose parts may be read as one; part → footer, sorted by part.

    Raises:
        OutputError: if it is not a dataset.
        DatasetError: if there are no parts, a part is not whole, or not all parts have the dataset's fingerprint.
    """
    expected = fingerprint(existing_dataset(output)["settings"])
    names = dict(sorted(part_stamps(output, "embeddings").items()))
    if not names:
        raise DatasetError(f"{output} holds no embeddings; python -m pipelines.embed makes them")
    footers = read_footers(output, "embeddings", names)
    if damaged := [name for name in names if name not in footers]:
        raise DatasetError(
            f"{part_uri(output, 'embeddings', damaged[0])} is not whole; run the same embed command again"
        )
    if others := [name for name in names if footers[name]["fingerprint"] != expected]:
        raise DatasetError(
            f"{output} holds {counted(len(others), 'part')} made with other settings than the dataset has now, "
            f"{others[0]} among them: an --overwrite was interrupted; run it again to its end"
        )
    if not storage.exists(storage.join(output, "_SUCCESS")):
        _LOGGER.warning("%s has no _SUCCESS: its last run was not complete, so samples may be missing", output)
    return {name: footers[name] for name in names}


def check_labels(output: str, digests: Mapping[str, str], taxonomies: Sequence[str]) -> dict[str, str]:
    """Check that all parts have labels of these taxonomies, made from their embeddings and of the same classes.

    Args:
        output: URI of the dataset.
        digests: part → digest, of all parts.
        taxonomies: names of taxonomies.
    Returns:
        Taxonomy → what its labels are made with: digest of its classes, and the lengths of `top`.
    Raises:
        DatasetError: naming the taxonomy.
    """
    classes: dict[str, str] = {}
    taken: dict[str, str] = {}
    with contextlib.suppress(OSError, pa.ArrowException):  # whoever reads the part says that it is gone or damaged
        taken = taken_names(column_names(output, min(digests))) if taxonomies else {}
    for taxonomy in taxonomies:
        if column := taken.get(taxonomy.lower()):
            raise DatasetError(
                f"{output} has the column {column} besides the taxonomy {taxonomy}, so its labels cannot be told "
                f"apart; label it with {taxonomy} under another name"
            )
        makes = f"python -m pipelines.label --input {output} --taxonomy FILE makes them"
        labels = read_footers(output, f"labels/{taxonomy}", sorted(digests))
        if missing := sorted(digests.keys() - labels.keys()):
            raise DatasetError(
                f"{output} has no labels/{taxonomy} for {len(missing)} of {counted(len(digests), 'part')}, "
                f"{missing[0]} among them; {makes}"
            )
        if stale := [part for part in sorted(digests) if labels[part].get("digest") != digests[part]]:
            raise DatasetError(
                f"{output} has labels/{taxonomy} made from other embeddings for {counted(len(stale), 'part')}, "
                f"{stale[0]} among them; {makes}"
            )
        found = {str(footer.get("taxonomy_digest", "")) for footer in labels.values()}
        if len(found) > 1:
            raise DatasetError(
                f"{output} has labels/{taxonomy} of different classes: an --overwrite was interrupted; run it again"
            )
        tops = sorted({int(footer.get("top_labels", 0)) for footer in labels.values()})  # inputs may differ in it
        classes[taxonomy] = f"{found.pop()} top {','.join(map(str, tops))}"
    return classes


def check_rows(output: str, parts: Sequence[str], rows: str) -> None:
    """Refuse rows that the dataset does not have.

    Raises:
        ValueError: if `rows` is not one of ROWS.
        DatasetError: if a part lacks them.
    """
    if known_rows(rows) == "embeddings":
        return
    missing = sorted(set(parts) - part_names(output, rows))
    if not missing:
        return
    if len(missing) == len(parts):
        raise DatasetError(
            f"{output} holds no captions/, since it was made without --captions all; give pipelines.embed that flag, "
            "and another --output or --overwrite"
        )
    raise DatasetError(
        f"{part_uri(output, rows, missing[0])} is missing ({len(missing)} of {len(parts)} such); run the same embed "
        "command again"
    )


class Dataset:
    """A finished dataset, opened for reading: `Dataset.open("out")`.

    Attributes:
        uri: URI of the folder that `EmbedShards` wrote.
        parts: names of the parts, sorted.
    """

    def __init__(self, uri: str, footers: Mapping[str, Footer]):
        """Use `Dataset.open`, which checks what it opens."""
        self.uri, self.parts = uri, sorted(footers)
        self._footers = footers

    @classmethod
    def open(cls, uri: storage.Place) -> Dataset:
        """Open a dataset after the checks that every command makes.

        Args:
            uri: folder that `EmbedShards` wrote, on any fsspec file system; a text or a Path.
        Raises:
            ValueError: or one of its subclasses, in one sentence, if there is no dataset, it is of a newer format, or
                its parts cannot be read as one.
        """
        uri = storage.normalise(storage.as_uri(uri, "uri"))
        return cls(uri, check_dataset(uri))

    def __repr__(self) -> str:
        """Name the folder, the number of parts and their length."""
        return f"Dataset({self.uri!r}, {len(self.parts)} parts, embed_dim {self.embed_dim})"

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Part → digest of its rows, 64 hex digits."""
        return {part: self._footers[part]["digest"] for part in self.parts}

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Part → number of its rows."""
        return {part: self._footers[part]["counts"].get("rows", 0) for part in self.parts}

    @functools.cached_property
    def shards(self) -> dict[str, str]:
        """Part → URI of the shard that it was made from."""
        return {part: self._footers[part]["shard"] for part in self.parts}

    @property
    def fingerprint(self) -> str:
        """What the dataset's settings come to, 32 hex digits; it is the same in all parts."""
        return self._footers[self.parts[0]]["fingerprint"]

    @functools.cached_property
    def counts(self) -> Counter:
        """Sum of the counts of all parts, see `clip_transforms.parts.counts`."""
        return add(footer["counts"] for footer in self._footers.values())

    @property
    def embed_dim(self) -> int:
        """Number of values of an embedding, d."""
        return int(self.provenance["embed_dim"])

    @functools.cached_property
    def embedding_dtype(self) -> str:
        """Type of the stored embeddings, `float32` or `float16`."""
        return existing_dataset(self.uri)["settings"].get("embedding_dtype", "float32")

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """Facts about how the parts were made: checkpoint, precision, versions, and so on.

        Where parts differ in a fact, it is a tuple of all values: `{"precision": ("bf16", "fp32")}`.
        """
        found: dict[str, list[Any]] = {}
        for footer in self._footers.values():
            for name, value in footer["provenance"].items():
                values = found.setdefault(name, [])
                if value not in values:
                    values.append(value)
        return {name: values[0] if len(values) == 1 else tuple(values) for name, values in found.items()}

    @property
    def taxonomies(self) -> list[str]:
        """Names of the taxonomies that have labels, sorted."""
        return sorted(taxonomy_names(self.uri))

    def batches(
        self, columns: str | Sequence[str] | None = None, labels: str | Sequence[str] = (), rows: str = "embeddings"
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows part by part; memory does not grow with the dataset.

        Args:
            columns: columns to read, one or several, all by default; those of labels are called `<taxonomy>.label`,
                `.probability`, `.similarity`, `.margin` and `.top`.
            labels: taxonomies whose labels are joined, one or several.
            rows: `embeddings` for a row per sample, or `captions` for a row per caption with the labels of its sample,
                if the dataset was made with `--captions all`.
        Yields:
            Record batches in the order of the parts; embeddings are FixedSizeList of d values.
        Raises:
            DatasetError: if a column or the rows do not exist, or files of a part do not belong together.
        """
        for table in self._tables(columns, labels, rows):
            yield from table.to_batches()

    def to_table(
        self, columns: str | Sequence[str] | None = None, labels: str | Sequence[str] = (), rows: str = "embeddings"
    ) -> pa.Table:
        """Read all rows into one table. The arguments and errors are those of `batches`."""
        tables = list(self._tables(columns, labels, rows))
        return pa.concat_tables(tables).unify_dictionaries()

    def _tables(
        self, columns: str | Sequence[str] | None, labels: str | Sequence[str], rows: str
    ) -> Iterator[pa.Table]:
        """Yield the rows of each part."""
        wanted = None if columns is None else storage.as_names(columns, "columns")
        taxonomies = storage.as_names(labels, "labels")
        check_rows(self.uri, self.parts, rows)
        check_labels(self.uri, self.digests, taxonomies)
        for part in self.parts:
            yield read_table(self.uri, part, wanted, taxonomies, rows)

    def embeddings(self, modality: str) -> tuple[pa.Table, np.ndarray]:
        """Read the embeddings of one modality as a matrix, with the names of its rows.

        Rows without an embedding of this modality are left out of both.

        Args:
            modality: `image` or `caption`.
        Returns:
            A table of n rows with the columns `key`, `shard` and `row`, and a float32 array [n, d] in the same order. A
            row of the array has length 1 (to half precision if the dataset stores float16).
        """
        if modality not in MODALITIES:
            raise ValueError(f"modality is {modality!r}, but it must be {' or '.join(MODALITIES)}")
        count = sum(footer["counts"].get(f"{modality}.embedded", 0) for footer in self._footers.values())
        matrix, filled, keys = np.empty((count, self.embed_dim), np.float32), 0, []
        for part in self.parts:
            name = f"{modality}_embedding"
            table = read_table(self.uri, part, [*KEYS, name])
            table = table.filter(table.column(name).is_valid())
            if table.num_rows != self._footers[part]["counts"].get(f"{modality}.embedded", 0):
                raise DatasetError(f"{part} in {self.uri} was replaced since the dataset was opened; open it again")
            for lists in table.column(name).chunks:
                values = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.embed_dim)
                matrix[filled : filled + len(values)] = values
                filled += len(values)
            keys.append(table.select(KEYS))
        return pa.concat_tables(keys).unify_dictionaries(), matrix
