"""LabelEmbeddings and label_embeddings: new taxonomies over a finished dataset, from its stored embeddings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import Checkpoint, ClipSpec
from clip_transforms.clip.taxonomy import Taxonomies, Taxonomy, as_taxonomies, check_names
from clip_transforms.labels.classes import check_classes, embed_classes
from clip_transforms.labels.part import label_part, labels_footer, stale_labels
from clip_transforms.parts.dataset import check_dataset
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.manifest import (
    OutputError,
    check_taxonomies,
    clear_success,
    existing_dataset,
    make_folders,
    write_dataset,
)
from clip_transforms.run.job import read_taxonomies, write_taxonomies
from clip_transforms.run.over_parts import OverParts, PartsWork
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.run.settings import Settings


def label_embeddings(
    dataset: storage.Place, taxonomies: Taxonomies, model: ClipSpec | storage.Place | None = None, **options: Any
) -> dict[str, Any]:
    """Label the parts of a dataset whose labels are missing or stale, in this process, without Beam.

    It makes the same checks, commits and bytes as `LabelEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        taxonomies: classes to label with; a Taxonomy, or a text or a Path of a file, or several.
        model: the dataset's own checkpoint, if it was moved since the dataset was made; as in `embed_shards`.
        **options: `top_labels` and `overwrite`; see `plan_labels`.
    Returns:
        What is also written to `runs/<run>.json`: the taxonomies, and how many parts and rows were labelled.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return LabelEmbeddings(dataset, taxonomies, model, **options).run_here()


class LabelEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of a part, rows)]: label the parts whose labels are missing or stale."""

    def __init__(
        self,
        dataset: storage.Place,
        taxonomies: Taxonomies,
        model: ClipSpec | storage.Place | None = None,
        **options: Any,
    ):
        """Take the arguments of `label_embeddings`; applying the transform looks at the dataset.

        Raises:
            ValueError: if an argument has a wrong type, or a taxonomy cannot be used.
        """
        uri, classes = storage.as_uri(dataset, "dataset"), as_taxonomies(taxonomies)
        spec = None if model is None else ClipSpec.of(model)
        super().__init__(lambda: plan_labels(uri, classes, spec, **options))


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
    def items(self) -> Sequence[tuple[str, list[str]]]:
        """(part, taxonomies) of each part to label."""
        return sorted(self.stale.items())

    def begin(self, folder: RunFolder) -> PartsWork:
        """Write the taxonomies into the dataset; without its labels it is not complete."""
        made = existing_dataset(self.output)
        digests = {taxonomy.name: taxonomy.digest for taxonomy in self.taxonomies}
        if not self.overwrite:
            check_taxonomies(self.output, made, digests)
        write_dataset(self.output, made["settings"], made["model"], {**made["taxonomies"], **digests}, folder.uri)
        complete = storage.exists(storage.join(self.output, "_SUCCESS"))
        clear_success(self.output)
        make_folders(self.output, [f"labels/{name}" for name in digests])
        write_taxonomies(folder.uri, self.taxonomies)
        return _LabelWork(complete, self.output, folder.uri, self.checkpoint, digests, self.top_labels)


@dataclasses.dataclass(frozen=True)
class _LabelWork(PartsWork):
    """How one part is labelled; `marks_success` is whether the dataset was complete before."""

    marks_success: bool
    output: str
    folder: str
    checkpoint: Checkpoint
    digests: Mapping[str, str]
    top_labels: int

    def prepare(self) -> dict[str, str]:
        """Embed the classes; taxonomy → URI of its class embeddings."""
        return embed_classes(self.output, read_taxonomies(self.folder), self.checkpoint, "auto", self.folder)

    def do_part(self, item: tuple[str, list[str]], prepared: Mapping[str, str]) -> tuple[str, int]:
        """Label one part; its URI and its number of rows."""
        part, names = item
        footers = {name: labels_footer(name, digest, self.top_labels) for name, digest in self.digests.items()}
        classes = {name: prepared[name] for name in names}
        rows = label_part(self.output, self.folder, part, classes, footers, self.top_labels)
        return part_uri(self.output, "embeddings", part), rows

    def summarise(self, result: tuple[str, int]) -> Counter:
        """Count the part and its rows."""
        return Counter(parts=1, rows=result[1])

    def finish(self, total: Counter) -> dict[str, Any]:
        """Say what was labelled."""
        return {"taxonomies": dict(self.digests), "labelled": {"parts": total["parts"], "rows": total["rows"]}}


def plan_labels(
    dataset: str,
    taxonomies: Sequence[Taxonomy],
    model: ClipSpec | None = None,
    top_labels: int = Settings.top_labels,
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
    check_names(taxonomies)
    output = storage.normalise(dataset)
    made = existing_dataset(output)
    check_classes(output, taxonomies)
    spec = model or ClipSpec(made["model"])
    spec = dataclasses.replace(spec, checkpoint_key=made["settings"].get("checkpoint_key"))
    checkpoint = dataclasses.replace(spec, activation=made["settings"]["activation"]).resolve()
    if checkpoint.sha256 != made["settings"]["model"]:
        same = spec.location == made["model"]
        how = "is another file now" if same else f"is given, but {output} was made with --model {made['model']}"
        raise OutputError(
            f"--model {spec.model} {how}: its SHA-256 is {checkpoint.sha256}, and that of the dataset's checkpoint was "
            f"{made['settings']['model']}; give the checkpoint that made the embeddings"
        )
    digests = {taxonomy.name: taxonomy.digest for taxonomy in taxonomies}
    if not overwrite:
        check_taxonomies(output, made, digests)
    footers = check_dataset(output)
    stale = stale_labels(output, footers, digests, top_labels)
    return LabelPlan(output, tuple(taxonomies), checkpoint, top_labels, overwrite, tuple(footers), stale)
