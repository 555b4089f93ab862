"""Which parts of a dataset lack labels, and the checkpoint that can make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomy, check_names
from clip_transforms.labels.classes import check_classes
from clip_transforms.labels.part import TOP_LABELS, stale_labels
from clip_transforms.parts.checkpoint import checkpoint_of
from clip_transforms.parts.dataset import check_dataset
from clip_transforms.parts.footers import column_names
from clip_transforms.parts.manifest import (
    check_taxonomies,
    clear_success,
    existing_dataset,
    make_folders,
    write_dataset,
)
from schemas.labels import taken_names


@dataclasses.dataclass(frozen=True)
class LabelPlan:
    """What must be labelled.

    Attributes:
        output: URI of the dataset.
        taxonomies: taxonomies to label with.
        checkpoint: the checkpoint of the dataset's embeddings.
        top_labels: length of a label's `top`.
        overwrite: whether a taxonomy may mean other classes than it did.
        parts: names of the dataset's parts.
        stale: part → taxonomies whose labels must be made.
    """

    output: str
    taxonomies: tuple[Taxonomy, ...]
    checkpoint: Checkpoint
    top_labels: int
    overwrite: bool
    parts: tuple[str, ...]
    stale: Mapping[str, list[str]]

    @property
    def digests(self) -> dict[str, str]:
        """Taxonomy → digest."""
        return {taxonomy.name: taxonomy.digest for taxonomy in self.taxonomies}

    def finished(self) -> None:
        """Do not say that nothing is left to do: a run over no parts still enters its taxonomies."""
        return None

    def enter(self, scratch: str) -> bool:
        """Write the taxonomies into the dataset, which is not complete without their labels.

        Args:
            scratch: URI of the run's temporary folder.
        Returns:
            Whether the dataset was complete.
        """
        made = existing_dataset(self.output)
        if not self.overwrite:
            check_taxonomies(self.output, made, self.digests)
        write_dataset(self.output, made["settings"], made["model"], {**made["taxonomies"], **self.digests}, scratch)
        complete = storage.exists(storage.join(self.output, "_SUCCESS"))
        clear_success(self.output)
        make_folders(self.output, [f"labels/{name}" for name in self.digests])
        return complete


def plan_labels(
    dataset: str,
    taxonomies: Sequence[Taxonomy],
    model: ClipSpec | None = None,
    top_labels: int = TOP_LABELS,
    overwrite: bool = False,
) -> LabelPlan:
    """Find the parts of a dataset whose labels are missing or stale.

    Args:
        dataset: URI of a folder that `EmbedShards` wrote.
        taxonomies: taxonomies to label with.
        model: the dataset's own checkpoint, if it was moved since the dataset was made.
        top_labels: length of a label's `top`.
        overwrite: whether a taxonomy may mean other classes than the existing labels of its name.
    Raises:
        ValueError: or one of its subclasses, with one sentence for the person who asked.
    """
    if not taxonomies:
        raise ValueError("--taxonomy is missing: give at least one .json or .txt file with classes")
    top_labels = storage.as_setting(top_labels, "top_labels", "int")
    overwrite = storage.as_setting(overwrite, "overwrite", "bool")
    if top_labels < 1:
        raise ValueError(f"--top_labels is {top_labels}, but it must be 1 or more")
    output = storage.normalise(dataset)
    made = existing_dataset(output)
    check_classes(output, taxonomies)
    checkpoint = checkpoint_of(output, made, model)
    digests = {taxonomy.name: taxonomy.digest for taxonomy in taxonomies}
    if not overwrite:
        check_taxonomies(output, made, digests)
    footers = check_dataset(output)
    check_names(taxonomies, taken_names(column_names(output, min(footers))))
    stale = stale_labels(output, footers, digests, top_labels)
    return LabelPlan(output, tuple(taxonomies), checkpoint, top_labels, overwrite, tuple(footers), stale)
