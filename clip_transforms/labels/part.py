"""Label one part from its stored embeddings, without reading images or loading a model."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.labels.batch import label_batch
from clip_transforms.labels.classes import read_classifier
from clip_transforms.parts.footers import part_uri, read_footer, read_footers
from clip_transforms.parts.reader import DatasetError
from clip_transforms.parts.writer import LabelsWriter
from schemas.provenance import Footer, decode_footer

TOP_LABELS = 5  # default length of `top`
_ROWS = 1024
_COLUMNS = ["key", "shard", "row", "image_embedding"]


def labels_footer(taxonomy: str, digest: str, top_labels: int) -> Footer:
    """Return the footer fields that only a labels part has, beside the fields that all parts of its unit share."""
    return {"taxonomy": taxonomy, "taxonomy_digest": digest, "top_labels": top_labels}


def labels_footers(digests: Mapping[str, str], top_labels: int) -> dict[str, Footer]:
    """Taxonomy → the footer fields that only its labels parts have.

    Args:
        digests: taxonomy → digest.
        top_labels: length of a label's `top`.
    """
    return {name: labels_footer(name, digest, top_labels) for name, digest in digests.items()}


def stale_labels(
    output: str, footers: Mapping[str, Footer], taxonomies: Mapping[str, str], top_labels: int
) -> dict[str, list[str]]:
    """Find labels that are missing, or that were made from other embeddings, classes or settings.

    Args:
        output: the URI of the dataset.
        footers: part → the footer of its embeddings, for the parts to check.
        taxonomies: taxonomy → digest.
        top_labels: the number of top labels that this run asks for.
    Returns:
        Part → the taxonomies whose labels must be made. Parts without any are left out.
    """
    stale: dict[str, list[str]] = {}
    for name, digest in taxonomies.items():
        found = read_footers(output, f"labels/{name}", sorted(footers))
        wanted = labels_footer(name, digest, top_labels)
        for part, footer in footers.items():
            labels = found.get(part, {})
            expected = {**wanted, "digest": footer["digest"], "fingerprint": footer["fingerprint"]}
            if any(labels.get(key) != value for key, value in expected.items()):
                stale.setdefault(part, []).append(name)
    return stale


def label_part(
    output: str, folder: str, part: str, classes: Mapping[str, str], footers: Mapping[str, Footer], top_labels: int
) -> int:
    """Make the labels of one part and commit them.

    Args:
        output: the URI of the dataset.
        folder: the URI of the run's temporary folder.
        part: the part's name.
        classes: taxonomy → the URI of its class embeddings.
        footers: taxonomy → the footer fields that only its labels parts have; see `labels_footer`.
        top_labels: the length of `top`.
    Returns:
        The number of rows.
    Raises:
        DatasetError: if the embeddings are gone.
    """
    uri = part_uri(output, "embeddings", part)
    footer = read_footer(uri)
    if footer is None:
        raise _missing(uri)
    rows = 0
    for taxonomy, classes_uri in classes.items():
        classifier = read_classifier(classes_uri, footers[taxonomy]["taxonomy_digest"])
        with storage.open_input(uri) as file, LabelsWriter(output, folder, taxonomy, part) as labels:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            read = decode_footer(parquet.metadata.metadata, uri)
            if read is None:
                raise _missing(uri)
            rows = parquet.metadata.num_rows
            for batch in parquet.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False):
                labels.add(label_batch(batch, classifier, top_labels))
            made: Footer = {**footer, **footers[taxonomy], "digest": read["digest"]}
            made.pop("format", None)
            labels.commit(made)
    return rows


def _missing(uri: str) -> DatasetError:
    return DatasetError(f"{uri} is missing or incomplete; run the same embed command again")
