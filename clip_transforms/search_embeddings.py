"""SearchEmbeddings and search_embeddings: texts, pictures or samples → the nearest rows of a finished dataset."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import EXIF_APPLIED, MAX_IMAGE_PIXELS
from clip_transforms.pages.looked import Thumbnails
from clip_transforms.pages.page_file import check_page
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.found_step import Page
from clip_transforms.run.new_output import NewOutput, digest_of
from clip_transforms.run.over_parts import OverParts, write_items
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.run.search_files import QUERIES, group_parts
from clip_transforms.run.search_steps import Searching
from clip_transforms.run.settings import reader_options
from clip_transforms.select.index_folder import IndexFolder
from clip_transforms.select.queries import Asked, Queries
from clip_transforms.select.query_file import QueryError
from clip_transforms.select.results import RESULTS, read_results
from clip_transforms.select.searched import TOP_K, Searched
from clip_transforms.select.vector_index import import_faiss

RECORD = "search.json"


def search_embeddings(
    dataset: storage.Place,
    output: storage.Place | None = None,
    *,
    text: str | Sequence[str] = (),
    image: storage.Places = (),
    like: str | Sequence[str] = (),
    queries: storage.Place | None = None,
    against: str | None = None,
    top_k: int = TOP_K,
    where: str | None = None,
    selection: storage.Places = (),
    index: storage.Place | None = None,
    html: storage.Place | None = None,
    allow_uri: Sequence[str] = (),
    model: ClipSpec | storage.Place | None = None,
    overwrite: bool = False,
) -> pa.Table:
    """Find the rows that are nearest to some queries, in this process, without Beam.

    The search is exact. It makes the same checks and bytes as `SearchEmbeddings`.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: folder for the results, new or of the same command; without it nothing is written.
        text: words to search for, one text or several.
        image: files of pictures to search for, one or several.
        like: keys of samples to search for, one or several; `SHARD#ROW` where a key is not unique.
        queries: a file with a text a line, or a Parquet or CSV file with a column `text` or `embedding`.
        against: what is compared: `image`, `caption`, or `both`, the mean of the two cosines, for rows that have both.
            By default the pictures, or the captions if there are no pictures.
        top_k: number of rows a query.
        where: a DuckDB expression, as in `filter_embeddings`; only rows for which it is true are searched.
        selection: selections whose rows alone are searched, one or several; see `Selection.open`.
        index: folder that `index_embeddings` wrote, which is asked instead of comparing all rows: faster, and not
            exact. `where` and `selection` narrow what it may find.
        html: a page to write besides, which shows the results with pictures from their sources.
        allow_uri: places that the URIs of a listing may point to, as when it was embedded; for the page.
        model: the dataset's own checkpoint, if it was moved since the dataset was made; as in `embed_shards`.
        overwrite: whether what another command made in `output` may be replaced.
    Returns:
        The rows of `results.parquet`, described by `schemas.results`: for each query its nearest rows, best first; ties
        by (`shard`, `row`).
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = storage.join(folder, "found") if output is None else output
        search = SearchEmbeddings(
            dataset,
            place,
            text=text,
            image=image,
            like=like,
            queries=queries,
            against=against,
            top_k=top_k,
            where=where,
            selection=selection,
            index=index,
            html=html,
            allow_uri=allow_uri,
            model=model,
            overwrite=overwrite,
        )
        search.run_here()
        return read_results(storage.join(storage.normalise(storage.as_uri(place, "output")), RESULTS))


class SearchEmbeddings(OverParts):
    """Pipeline → PCollection[(URI of the results, number of their rows)]."""

    @same_arguments(search_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `search_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_search, **arguments))

    def begin(self, plan: SearchPlan, folder: RunFolder) -> Searching:
        """Make the output ready, and leave the parts and the queries in the run's folder."""
        plan.new.begin(folder)
        write_items(folder.uri, plan.groups())
        plan.queries.write(storage.join(folder.uri, QUERIES), folder.uri)
        return Searching(
            new=plan.new,
            rows=plan.searched.settled(folder.uri),
            dataset=plan.dataset.uri,
            columns=plan.searched.columns,
            top_k=plan.searched.top_k,
            classes=plan.searched.classes,
            checkpoint=plan.queries.checkpoint,
            folder=folder.uri,
            index=plan.index,
            page=plan.page,
        )


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """A search that could start.

    Attributes:
        dataset: the dataset.
        queries: what is searched for.
        searched: where it is searched, and how many rows are wanted.
        new: the output.
        index: the index that is asked; None for an exact search.
        page: the page that shows what was found; None without one.
    """

    dataset: Dataset
    queries: Queries
    searched: Searched
    new: NewOutput
    index: IndexFolder | None
    page: Page | None

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.new.uri

    def groups(self) -> list[list[Any]]:
        """Return the parts in groups that are searched together, in the order of their shards."""
        digests, shards, rows = self.dataset.digests, self.dataset.shards, self.dataset.rows
        ranks = {shard: rank for rank, shard in enumerate(sorted(set(shards.values())))}
        parts = sorted(self.dataset.parts, key=lambda part: (ranks[shards[part]], part))
        described = [(part, digests[part], place, ranks[shards[part]]) for place, part in enumerate(parts)]
        return group_parts(described, [rows[part] for part in parts])

    def finished(self) -> Mapping[str, Any] | None:
        """Return the content of `search.json` if the results are there already. A page is made anew each time."""
        there = storage.exists(storage.join(self.new.uri, RESULTS))
        return self.new.finished() if there and self.page is None else None


def plan_search(
    dataset: storage.Place,
    output: storage.Place,
    *,
    text: str | Sequence[str] = (),
    image: storage.Places = (),
    like: str | Sequence[str] = (),
    queries: storage.Place | None = None,
    against: str | None = None,
    top_k: int = TOP_K,
    where: str | None = None,
    selection: storage.Places = (),
    index: storage.Place | None = None,
    html: storage.Place | None = None,
    allow_uri: Sequence[str] = (),
    model: ClipSpec | storage.Place | None = None,
    overwrite: bool = False,
) -> SearchPlan:
    """Check the arguments of `search_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    folder = None
    if index is not None:
        import_faiss()
        folder = IndexFolder.open(index, opened, digest_of(opened.digests))
        against = folder.against_or_refuse(against)
    searched = Searched.of(opened, against, top_k, where, selection)
    asked = Queries.of(opened, searched.columns, Asked.of(text, image, like, queries), model)
    command = {"verb": "search", **asked.identity, **searched.settings}
    command |= {"index": {"index": folder.uri, "sha256": folder.digest}} if folder else {}
    new = NewOutput.of(output, opened, command, overwrite, record=RECORD, folders=(), files=(RESULTS,))
    page = None
    if html is not None:
        uri = check_page(html, "--html", opened.uri, opened.shards.values(), new.overwrite)
        page = _page(opened, uri, searched, allow_uri)
    elif allow_uri:
        raise QueryError("--allow_uri is for the pictures of --html, which is not given; omit it")
    return SearchPlan(opened, asked, searched, new, folder, page)


def _page(dataset: Dataset, uri: str, searched: Searched, allow_uri: Sequence[str]) -> Page:
    """Return the page that was asked for."""
    settings = existing_dataset(dataset.uri)["settings"]
    most = int(settings.get("max_image_pixels") or MAX_IMAGE_PIXELS)
    turned = EXIF_APPLIED in settings.get("preprocessing", "")
    reader = reader_options(settings, storage.as_names(allow_uri, "allow_uri") if allow_uri else ())
    return Page(uri, reader, Thumbnails(most, "apply" if turned else "ignore"), searched.described)
