"""What an export is asked for, checked against the dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.exports import clip_retrieval, faiss_index, lance_table, npy, uids, webdataset
from clip_transforms.exports.extras import EXTRAS, import_extra
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.footers import has_captions, part_uri
from schemas.embeddings import reserved_names
from schemas.samples import MODALITIES

SAMPLES_PER_SHARD = 10_000
# Layout → the folders that it fills.
LAYOUTS = {
    "webdataset": (webdataset.FOLDER,),
    "clip_retrieval": (*clip_retrieval.VECTORS.values(), clip_retrieval.METADATA),
    "npy": (npy.FOLDER,),
    "datacomp_uids": (uids.FOLDER,),
    "faiss": (faiss_index.FOLDER,),
    "lance": (lance_table.FOLDER,),
}
_WITH_LABELS = ("webdataset", "clip_retrieval", "lance")
_OF_VECTORS = ("clip_retrieval", "npy", "faiss")
MODALITY = (*MODALITIES, "both")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout that has been checked; `Layout.of` makes one.

    Attributes:
        name: one of LAYOUTS.
        per_shard: the most samples of a tar.
        modalities: the modalities whose embeddings are written, of layouts of vectors; rows without are left out.
        classes: taxonomy whose labels go along → what they are made with; see `check_labels`.
        stored: names of all columns of the embeddings.
        columns: names of the user's own columns.
        all_captions: whether the dataset has all captions of a sample.
        embed_dim: number of values of an embedding.
        dtype: their type in the dataset.
        allow_uri: places that the URIs of a listing may point to.
    """

    name: str
    per_shard: int
    modalities: tuple[str, ...]
    classes: Mapping[str, str]
    stored: tuple[str, ...]
    columns: tuple[str, ...]
    all_captions: bool
    embed_dim: int
    dtype: str
    allow_uri: tuple[str, ...]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        name: str,
        samples_per_shard: int | None = None,
        modality: str | None = None,
        labels: storage.Places | None = None,
        allow_uri: Sequence[str] = (),
    ) -> Layout:
        """Check what is asked for.

        Raises:
            ValueError: or one of its subclasses, in one sentence.
        """
        if name not in LAYOUTS:
            raise ValueError(f"--as is {name!r}, but it must be one of {', '.join(LAYOUTS)}")
        for flag, value, layouts in (
            ("samples_per_shard", samples_per_shard, ("webdataset",)),
            ("allow_uri", allow_uri or None, ("webdataset",)),
            ("modality", modality, _OF_VECTORS),
            ("labels", labels, _WITH_LABELS),
        ):
            if value is not None and name not in layouts:
                raise ValueError(f"--{flag} is for --as {' and '.join(layouts)}, not for --as {name}; omit it")
        if name in EXTRAS:
            import_extra(name)
        per_shard = SAMPLES_PER_SHARD if samples_per_shard is None else samples_per_shard
        if storage.as_setting(per_shard, "samples_per_shard", "int") < 1:
            raise ValueError(f"--samples_per_shard is {per_shard}, but it must be 1 or more")
        modalities = _modalities(dataset, name, modality) if name in _OF_VECTORS else ()
        classes = _classes(dataset, labels) if name in _WITH_LABELS else {}
        schema = _schema(dataset)
        return cls(
            name,
            per_shard,
            modalities,
            classes,
            tuple(schema.names),
            tuple(column for column in schema.names if column not in reserved_names()),
            name == "webdataset" and has_captions(dataset.uri),
            dataset.embed_dim,
            "float16" if pa.types.is_float16(schema.field("image_embedding").type.value_type) else "float32",
            storage.as_names(allow_uri, "allow_uri") if allow_uri else (),
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders that the export fills."""
        if self.name != "clip_retrieval":
            return LAYOUTS[self.name]
        return (*(clip_retrieval.VECTORS[modality] for modality in self.modalities), clip_retrieval.METADATA)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values: only what this layout has."""
        given: dict[str, Any] = {
            "as": self.name,
            "samples_per_shard": self.per_shard if self.name == "webdataset" else None,
            "modality": list(self.modalities) or None,
            "labels": list(self.classes) if self.name in _WITH_LABELS else None,
            "classes": self.classes or None,
            "allow_uri": list(self.allow_uri) or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that a row must have."""
        return tuple(f"{modality}_embedding" for modality in self.modalities)


def _schema(dataset: Dataset) -> pa.Schema:
    """Return the columns of the embeddings; they are the same in every part."""
    with storage.open_input(part_uri(dataset.uri, "embeddings", dataset.parts[0])) as file:
        return pq.read_schema(file)


def _modalities(dataset: Dataset, name: str, asked: str | None) -> tuple[str, ...]:
    """Decide whose embeddings are written: those that were asked for, or those that there are."""
    there = [modality for modality in MODALITIES if dataset.counts.get(f"{modality}.embedded")]
    if asked is None:
        usual = there[:1] if name == "faiss" else there
        return tuple(usual or MODALITIES[:1])  # of an empty dataset: an empty export
    if asked not in MODALITY:
        raise ValueError(f"--modality is {asked!r}, but it must be {', '.join(MODALITY[:-1])} or {MODALITY[-1]}")
    wanted = MODALITIES if asked == "both" else (asked,)
    if there and (lacking := [modality for modality in wanted if modality not in there]):
        raise ValueError(
            f"--modality is {asked}, but {dataset.uri} holds no {lacking[0]} embeddings; --modality {there[0]} takes "
            f"those of its {there[0]}s"
        )
    return tuple(wanted)


def _classes(dataset: Dataset, labels: storage.Places | None) -> dict[str, str]:
    """Decide whose labels go along: those that were asked for, or all. As `check_labels` has them."""
    known = dataset.taxonomies
    wanted = known if labels is None else list(storage.as_names(labels, "labels")) if labels else []
    if unknown := [taxonomy for taxonomy in wanted if taxonomy not in known]:
        there = f"its taxonomies are {', '.join(known)}" if known else "it has no labels"
        raise ValueError(f"--labels names {unknown[0]}, but {dataset.uri} has none of that name: {there}")
    return check_labels(dataset.uri, dataset.digests, wanted)
