"""ExportEmbeddings and export_embeddings: rows of a finished dataset → shards again, or a layout of another tool."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.exports.left_out import NAME as LEFT_OUT
from clip_transforms.exports.plan import LAYOUTS, Layout
from clip_transforms.exports.rows import ExportRows
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.export_steps import Exporting, entries_of
from clip_transforms.run.new_output import WORK, NewOutput
from clip_transforms.run.over_parts import OverParts, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.run.settings import reader_options
from clip_transforms.select.selection import Selection
from clip_transforms.shards.listings_again import write_listings

RECORD = "export.json"


def export_embeddings(
    dataset: storage.Place,
    output: storage.Place,
    layout: str,
    *,
    selection: storage.Places = (),
    samples_per_shard: int | None = None,
    modality: str | None = None,
    labels: storage.Places | None = None,
    allow_uri: storage.Places = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export rows of a dataset, in this process, without Beam.

    It makes the same checks and bytes as `ExportEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the export, new or of the same command; a text or a Path.
        layout: one of
            `webdataset`: `shards/*.tar` with the original pictures, captions, and JSON of key, score, labels and more;
            `clip_retrieval`: `img_emb/`, `text_emb/` and `metadata/`, as `clip-retrieval inference` writes them;
            `npy`: `npy/<modality>_embeddings.npy` and `npy/rows.parquet`;
            `datacomp_uids`: `datacomp/uids.npy`, as DataComp's resharder takes it;
            `faiss`: `faiss/<modality>.index`, exact, and `faiss/rows.parquet`;
            `lance`: `lance/embeddings.lance`.
        selection: selections whose rows alone are exported, one or several; see `Selection.open`.
        samples_per_shard: the most samples of a tar (10,000).
        modality: whose embeddings to write: `image`, `caption` or `both`; by default those that there are, and of an
            index the images'. Rows without them are left out.
        labels: taxonomies whose labels go along, by default all.
        allow_uri: places that the URIs of a listing may point to, as when it was embedded.
        overwrite: whether what another command made in `output` may be replaced.
    Returns:
        The content of `export.json`: how many rows were selected, exported, and left out for which reason.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(
        ExportEmbeddings(
            dataset,
            output,
            layout,
            selection=selection,
            samples_per_shard=samples_per_shard,
            modality=modality,
            labels=labels,
            allow_uri=allow_uri,
            overwrite=overwrite,
        ).run_here()
    )


class ExportEmbeddings(OverParts):
    """Pipeline → PCollection[counts of a piece of the export]."""

    @same_arguments(export_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `export_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_export, **arguments))

    def begin(self, plan: ExportPlan, folder: RunFolder) -> Exporting:
        """Make the output ready, and leave the parts and the rows of listings in the run's folder."""
        plan.new.begin(folder)
        for name in {name for names in LAYOUTS.values() for name in names} - set(plan.new.folders):
            storage.remove(storage.join(plan.output, name))
        write_items(folder.uri, plan.dataset.parts)
        reader = reader_options(existing_dataset(plan.dataset.uri)["settings"], plan.layout.allow_uri)
        if plan.layout.name == "webdataset":
            write_listings(plan.dataset.shards, reader, folder.uri)
        if plan.layout.name == "datacomp_uids":
            storage.make_folder(storage.join(plan.output, WORK))
        rows = ExportRows(
            plan.dataset.uri, plan.selection.settled(folder.uri), plan.layout.needed, tuple(plan.layout.classes)
        )
        return Exporting(plan.new, plan.layout, rows, reader, folder.uri)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """An export that could start.

    Attributes:
        dataset: the dataset.
        layout: what is asked for.
        selection: which rows are exported.
        new: the output.
    """

    dataset: Dataset
    layout: Layout
    selection: Selection
    new: NewOutput

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `export.json` if the export is there already, with all of its files."""
        content = self.new.finished()
        return content if content and content["entries"] == entries_of(self.new) else None


def plan_export(
    dataset: storage.Place,
    output: storage.Place,
    layout: str,
    *,
    selection: storage.Places = (),
    overwrite: bool = False,
    **options: Any,
) -> ExportPlan:
    """Check the arguments of `export_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    asked = Layout.of(opened, layout, **options)
    chosen = Selection.open(opened, selection)
    command = {"verb": "export", **asked.settings}
    command |= {"selection": list(chosen.identity)} if chosen.identity else {}
    files = (LEFT_OUT,) if asked.name == "webdataset" else ()
    new = NewOutput.of(output, opened, command, overwrite, record=RECORD, folders=asked.folders, files=files)
    return ExportPlan(opened, asked, chosen, new)
