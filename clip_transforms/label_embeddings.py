"""LabelEmbeddings and label_embeddings: new taxonomies over a finished dataset, from its stored embeddings."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomies, as_taxonomies
from clip_transforms.labels.classes import embed_classes
from clip_transforms.labels.part import TOP_LABELS, label_part, labels_footers
from clip_transforms.labels.plan import LabelPlan, plan_labels
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.kept_footers import tidy_footers
from clip_transforms.parts.manifest import finish_labels
from clip_transforms.run.job import read_taxonomies, write_taxonomies
from clip_transforms.run.over_parts import Once, OverParts, Step, read_items, write_items
from clip_transforms.run.run_folder import RunFolder


def label_embeddings(
    dataset: storage.Place,
    taxonomies: Taxonomies,
    model: ClipSpec | storage.Place | None = None,
    *,
    top_labels: int = TOP_LABELS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Label the parts of a dataset whose labels are missing or stale, in this process, without Beam.

    It makes the same checks, commits and bytes as `LabelEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        taxonomies: classes to label with; a Taxonomy, or a text or a Path of a file, or several.
        model: the dataset's own checkpoint, if it was moved since the dataset was made; as in `embed_shards`.
        top_labels: length of a label's `top`.
        overwrite: whether a taxonomy may mean other classes than the existing labels of its name.
    Returns:
        What is also written to `runs/<run>.json`: the taxonomies, and how many parts and rows were labelled.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(LabelEmbeddings(dataset, taxonomies, model, top_labels=top_labels, overwrite=overwrite).run_here())


class LabelEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of a part, rows)]: label the parts whose labels are missing or stale."""

    def __init__(
        self,
        dataset: storage.Place,
        taxonomies: Taxonomies,
        model: ClipSpec | storage.Place | None = None,
        *,
        top_labels: int = TOP_LABELS,
        overwrite: bool = False,
    ):
        """Take the arguments of `label_embeddings`; applying the transform looks at the dataset."""
        uri, classes = storage.as_uri(dataset, "dataset"), as_taxonomies(taxonomies)
        spec = None if model is None else ClipSpec.of(model)
        super().__init__(lambda: plan_labels(uri, classes, spec, top_labels, overwrite))

    def begin(self, plan: LabelPlan, folder: RunFolder) -> _Labelling:
        """Enter the taxonomies into the dataset, and leave what the workers need in the run's folder."""
        complete = plan.enter(folder.uri)
        write_taxonomies(folder.uri, plan.taxonomies)
        write_items(folder.uri, sorted(plan.stale.items()))
        return _Labelling(plan.output, plan.checkpoint, plan.digests, plan.top_labels, folder.uri, complete)


@dataclasses.dataclass(frozen=True)
class _Labelling(Step):
    """A run, and its step over the parts. `complete` is what `enter` returned; the rest comes from the plan."""

    output: str
    checkpoint: Checkpoint
    digests: Mapping[str, str]
    top_labels: int
    folder: str
    complete: bool
    started: float = dataclasses.field(default_factory=time.time)

    @property
    def steps(self) -> list[Step]:
        """Embed the classes once, then label the parts."""
        return [Once(self._embed_classes), self]

    def _embed_classes(self) -> dict[str, str]:
        return embed_classes(self.output, read_taxonomies(self.folder), self.checkpoint, "auto", self.folder)

    def items(self, state: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield (part, {taxonomy: URI of its class embeddings})."""
        return ((part, {name: state[name] for name in names}) for part, names in read_items(self.folder))

    def do(self, item: tuple[str, Mapping[str, str]]) -> tuple[str, int]:
        """Label one part; its URI and its number of rows."""
        footers = labels_footers(self.digests, self.top_labels)
        rows = label_part(self.output, self.folder, *item, footers, self.top_labels)
        return part_uri(self.output, "embeddings", item[0]), rows

    def summarise(self, result: tuple[str, int]) -> Counter:
        """Count the part and its rows."""
        return Counter(parts=1, rows=result[1])

    def finish(self, total: Counter) -> dict[str, Any]:
        """Write the run's own file below `runs/`, and `_SUCCESS` if the dataset was complete before."""
        if total["parts"]:
            tidy_footers(self.output, [f"labels/{name}" for name in self.digests])
        labelled = {"parts": total["parts"], "rows": total["rows"]}
        content = {"taxonomies": dict(self.digests), "labelled": labelled, "seconds": time.time() - self.started}
        return finish_labels(self.output, content, self.complete, self.folder)
