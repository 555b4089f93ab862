"""IndexEmbeddings and index_embeddings: a finished dataset → an index that answers many searches quickly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.index_steps import Indexing
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import OverParts, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.select.index_folder import INDEX, QUERIES, RECORD, ROWS
from clip_transforms.select.query_file import QueryError
from clip_transforms.select.searched import modality_of
from clip_transforms.select.selection import Selection
from clip_transforms.select.vector_index import AUTO, KINDS, import_faiss, kind_for
from schemas.samples import MODALITIES


def index_embeddings(
    dataset: storage.Place,
    output: storage.Place,
    *,
    kind: str = AUTO,
    against: str | None = None,
    selection: storage.Places = (),
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make an index for `search_embeddings`, in this process, without Beam.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder of the index, new or of the same command; a text or a Path.
        kind: `flat`, which compares all rows; `ivf`, which compares some lists of them; `hnsw`, which follows a graph;
            or `auto`: flat up to 50,000 rows, and ivf above.
        against: whose embeddings it holds, `image` or `caption`; by default the pictures', or the captions' if there
            are no pictures.
        selection: selections whose rows alone are in it, one or several; see `Selection.open`.
        seed: another seed measures with other rows, and makes other lists.
        overwrite: whether what another command made in `output` may be replaced.
    Returns:
        The content of `index.json`: the kind, the number of rows, and the measured recall@10.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    made = IndexEmbeddings(
        dataset,
        output,
        kind=kind,
        against=against,
        selection=selection,
        seed=seed,
        overwrite=overwrite,
    )
    return dict(made.run_here())


class IndexEmbeddings(OverParts):
    """Pipeline → PCollection[facts about the index], of one element. One worker makes the index."""

    @same_arguments(index_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `index_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_index, **arguments))

    def begin(self, plan: IndexPlan, folder: RunFolder) -> Indexing:
        """Make the output ready, and leave the parts in the run's folder."""
        plan.new.begin(folder)
        digests, shards = plan.dataset.digests, plan.dataset.shards
        write_items(folder.uri, [(part, digests[part], shards[part]) for part in plan.dataset.parts])
        return Indexing(
            new=plan.new,
            dataset=plan.dataset.uri,
            selection=plan.selection.settled(folder.uri),
            against=plan.against,
            kind=kind_for(plan.kind, plan.most_rows),
            d=plan.dataset.embed_dim,
            most_rows=plan.most_rows,
            seed=plan.seed,
            folder=folder.uri,
        )


@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """An index that could be made.

    Attributes:
        dataset: the dataset.
        selection: which rows are in it.
        against: whose embeddings it holds.
        kind: one of KINDS.
        seed: seed of the sample and of the lists.
        new: the output.
    """

    dataset: Dataset
    selection: Selection
    against: str
    kind: str
    seed: int
    new: NewOutput

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    @property
    def most_rows(self) -> int:
        """A bound of the number of rows of the index."""
        return self.selection.most_rows(self.dataset.counts.get(f"{self.against}.embedded", 0))

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `index.json` if the index is there already."""
        there = all(storage.exists(storage.join(self.new.uri, name)) for name in (INDEX, ROWS, QUERIES))
        return self.new.finished() if there else None


def plan_index(
    dataset: storage.Place,
    output: storage.Place,
    *,
    kind: str = AUTO,
    against: str | None = None,
    selection: storage.Places = (),
    seed: int = 0,
    overwrite: bool = False,
) -> IndexPlan:
    """Check the arguments of `index_embeddings`, and that the dataset and the output can be used."""
    import_faiss()
    if kind not in KINDS:
        raise QueryError(f"--kind is {kind!r}, but it must be {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    opened = Dataset.open(dataset)
    modality = modality_of(opened, against, MODALITIES)
    chosen = Selection.open(opened, selection)
    seed = storage.as_setting(seed, "seed", "int")
    command = {"verb": "index", "kind": kind, "against": modality, "seed": seed}
    command |= {"selection": list(chosen.identity)} if chosen.identity else {}
    files = (INDEX, ROWS, QUERIES)
    new = NewOutput.of(output, opened, command, overwrite, record=RECORD, folders=(), files=files)
    return IndexPlan(opened, chosen, modality, kind, seed, new)
