"""Check what `browse` is asked for, before a port is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.browsing.cache_folder import CacheFolder
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import EXIF_APPLIED, MAX_IMAGE_PIXELS
from clip_transforms.parts.checkpoint import checkpoint_of
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.run.new_output import digest_of
from clip_transforms.run.settings import reader_options
from clip_transforms.select.index_folder import IndexFolder
from clip_transforms.select.searched import Searched
from clip_transforms.select.selection import Selection
from clip_transforms.select.vector_index import import_faiss
from clip_transforms.shards.unit import ReaderOptions


@dataclasses.dataclass(frozen=True)
class BrowsePlan:
    """A dataset that can be browsed.

    Attributes:
        given: the dataset as the user wrote it, for commands.
        dataset: the dataset.
        digest: digest over all its parts.
        made: content of `_dataset.json`.
        searched: which embeddings are compared, and the taxonomies whose labels are whole.
        selection: the rows that are looked at.
        index: the index that is asked; None to compare all rows.
        reader: how the sources were read.
        model: the dataset's checkpoint, if it was moved.
        cache: where files are kept.
    """

    given: str
    dataset: Dataset
    digest: str
    made: Mapping[str, Any]
    searched: Searched
    selection: Selection
    index: IndexFolder | None
    reader: ReaderOptions
    model: ClipSpec | None
    cache: CacheFolder

    @property
    def parts(self) -> list[str]:
        """The parts that have rows, sorted by shard; those of one shard are in no order."""
        rows, shards = self.dataset.rows, self.dataset.shards
        return sorted((part for part in self.dataset.parts if rows[part]), key=lambda part: (shards[part], part))

    @property
    def max_pixels(self) -> int:
        """The most pixels of a picture that the dataset took."""
        return int(self.made["settings"].get("max_image_pixels") or MAX_IMAGE_PIXELS)

    @property
    def exif_orientation(self) -> str:
        """What the dataset does with EXIF orientation."""
        return "apply" if EXIF_APPLIED in self.made["settings"].get("preprocessing", "") else "ignore"


def plan_browse(
    dataset: storage.Place,
    *,
    index: storage.Place | None = None,
    against: str | None = None,
    selection: storage.Places = (),
    allow_uri: Sequence[str] = (),
    model: ClipSpec | storage.Place | None = None,
    cache: str | None = None,
) -> BrowsePlan:
    """Check the arguments.

    Args:
        dataset: folder that `EmbedShards` wrote.
        index: folder that `index_embeddings` wrote.
        against: what is compared, as in `search_embeddings`.
        selection: selections whose rows alone are shown, one or several.
        allow_uri: places that the URIs of a listing may point to, as when it was embedded.
        model: the dataset's own checkpoint, if it was moved since.
        cache: folder for what is slow to read; see `CacheFolder.of`.
    Raises:
        ValueError: or one of its subclasses, in one sentence.
    """
    opened = Dataset.open(dataset)
    digest, folder = digest_of(opened.digests), None
    if index is not None:
        import_faiss()
        folder = IndexFolder.open(index, opened, digest)
        against = folder.against_or_refuse(against)
    made = existing_dataset(opened.uri)
    spec = None if model is None else ClipSpec.of(model)
    if spec is not None:
        checkpoint_of(
            opened.uri, made, spec
        )  # what is given must fit; what is stored may be gone, and the page says so
    return BrowsePlan(
        given=str(dataset),
        dataset=opened,
        digest=digest,
        made=made,
        searched=Searched.of(opened, against),
        selection=Selection.open(opened, selection),
        index=folder,
        reader=reader_options(made["settings"], storage.as_names(allow_uri, "allow_uri") if allow_uri else ()),
        model=spec,
        cache=CacheFolder.of(opened.uri, cache),
    )
