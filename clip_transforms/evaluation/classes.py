"""The taxonomies of an evaluation: those that the dataset has embedded, and others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.taxonomy import Taxonomy, TaxonomyError, as_taxonomies
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import read_footer
from clip_transforms.parts.manifest import existing_dataset


@dataclasses.dataclass(frozen=True)
class Classes:
    """A taxonomy of an evaluation.

    Attributes:
        name: its name.
        digest: digest of its classes, prompts and templates.
        names: names of its k classes.
        uri: URI of the class embeddings in the dataset; empty if they must be made.
        taxonomy: what they must be made of; None if they are there.
    """

    name: str
    digest: str
    names: tuple[str, ...]
    uri: str = ""
    taxonomy: Taxonomy | None = None


def classes_of(dataset: Dataset, taxonomies: Any = ()) -> tuple[Classes, ...]:
    """Find the taxonomies that are asked for.

    Args:
        dataset: the dataset.
        taxonomies: names of taxonomies of the dataset, files or folders, or Taxonomy objects; one or several. Empty for
            the only one of the dataset.
    Raises:
        TaxonomyError: if there is no such taxonomy, or none is asked for and the dataset has not just one.
    """
    known: dict[str, str] = existing_dataset(dataset.uri)["taxonomies"]
    if not taxonomies:
        if len(known) != 1:
            there = (
                f"has several: {', '.join(known)}; name one or more" if known else "has none; give a file of classes"
            )
            raise TaxonomyError(f"--taxonomy is missing, and {dataset.uri} {there}")
        taxonomies = [*known]
    given = storage.several(taxonomies, "taxonomy", "a name, a file or a Taxonomy, or several", one=(Taxonomy,))
    found = tuple(_found(dataset, known, value) for _, value in given)
    for name, count in Counter(of.name for of in found).items():
        if count > 1:
            raise TaxonomyError(f"--taxonomy {name} is given {count} times; the names must differ")
    return found


def _found(dataset: Dataset, known: dict[str, str], value: Any) -> Classes:
    if isinstance(value, str) and value in known:
        found = _stored(dataset, value, known[value])
        if found is None:
            raise TaxonomyError(
                f"--taxonomy {value} names a taxonomy of {dataset.uri}, but {_uri(dataset, value)} is gone or of other "
                "classes; give the file of the taxonomy"
            )
        return found
    if isinstance(value, str) and not storage.exists(value):
        there = f"its taxonomies are {', '.join(known)}" if known else "it has no taxonomies"
        raise TaxonomyError(
            f"--taxonomy {value} is neither a file nor a taxonomy of {dataset.uri}: {there}; give one of these, or a "
            "file of classes"
        )
    (taxonomy,) = as_taxonomies([value])
    made = Classes(taxonomy.name, taxonomy.digest, tuple(taxonomy.class_names), taxonomy=taxonomy)
    return _stored(dataset, taxonomy.name, taxonomy.digest) or made


def _uri(dataset: Dataset, name: str) -> str:
    return storage.join(dataset.uri, "taxonomies", f"{name}.parquet")


def _stored(dataset: Dataset, name: str, digest: str) -> Classes | None:
    """Return a taxonomy whose class embeddings the dataset holds, made by its checkpoint; None if it does not."""
    uri, settings = _uri(dataset, name), existing_dataset(dataset.uri)["settings"]
    footer = read_footer(uri) if storage.exists(uri) else None
    key = settings.get("checkpoint_key")
    model = f"{settings['model']}, {key}" if key else settings["model"]
    if footer is None or footer.get("maker") != [digest, model, settings["activation"]]:
        return None
    with storage.open_input(uri) as file:
        names = pq.ParquetFile(file).read(["class"], use_threads=False).column("class")
    return Classes(name, digest, tuple(names.to_pylist()), uri)
