"""ReportEmbeddings and report_embeddings: a finished dataset → one page that shows what is in it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.pages.facts import Facts
from clip_transforms.pages.page_file import check_page
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.run.arguments import same_arguments
from clip_transforms.run.new_output import digest_of
from clip_transforms.run.over_parts import OverParts, write_items
from clip_transforms.run.report_steps import GROUPS, Reporting
from clip_transforms.run.run_folder import RunFolder
from clip_transforms.run.settings import reader_options
from clip_transforms.select.selection import Selection, SelectionError
from clip_transforms.shards.listings_again import write_listings
from clip_transforms.shards.unit import ReaderOptions

_LOST = re.compile(rb'<meta name="lost" content="(\d+)">')
_BEGINNING = 2_000  # bytes of a page in which it stands
PAGE = "report.html"


def report_embeddings(
    dataset: storage.Place,
    output: storage.Place = PAGE,
    *,
    selection: storage.Places = (),
    duplicates: storage.Place | None = None,
    pictures: bool = True,
    allow_uri: storage.Places = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a page about a dataset, in this process, without Beam.

    It makes the same checks and bytes as `ReportEmbeddings`. The page is one file of at most 5 MB, which loads nothing.
    Its counts are exact, over all rows; its pictures are read from the sources, and its map is of a sample.

    Args:
        dataset: folder that `EmbedShards` wrote; a text or a Path.
        output: the page, an HTML file; a text or a Path. An earlier page is made anew.
        selection: selections whose rows alone are looked at, one or several; see `Selection.open`.
        duplicates: folder that `deduplicate_embeddings` wrote, whose groups are shown; by default that among the
            selections.
        pictures: whether to read pictures (True); a page without them has less than 300 kB.
        allow_uri: places that the URIs of a listing may point to, as when it was embedded.
        overwrite: whether a file that is no such page may be replaced.
    Returns:
        `bytes`, the size of the page; `rows`, how many it looks at; `lost`, pictures whose source is gone or changed.
    Raises:
        ValueError: or one of its subclasses, in one sentence, if an argument or the dataset is wrong.
    """
    return dict(
        ReportEmbeddings(
            dataset,
            output,
            selection=selection,
            duplicates=duplicates,
            pictures=pictures,
            allow_uri=allow_uri,
            overwrite=overwrite,
        ).run_here()
    )


class ReportEmbeddings(OverParts):
    """Pipeline → PCollection[number of pictures of a part that are lost]."""

    @same_arguments(report_embeddings)
    def __init__(self, **arguments: Any):
        """Take the arguments of `report_embeddings`; applying the transform looks at the dataset."""
        super().__init__(functools.partial(plan_report, **arguments))

    def begin(self, plan: ReportPlan, folder: RunFolder) -> Reporting:
        """Leave the parts, and the rows of listings, in the run's folder."""
        dataset = plan.dataset
        shards, rows = dataset.shards, dataset.rows
        write_items(folder.uri, [(part, shards[part], rows[part]) for part in dataset.parts])
        storage.make_folder(storage.join(folder.uri, "looked"))
        if plan.pictures:
            write_listings(shards, plan.reader, folder.uri)
        return Reporting(
            output=plan.page,
            work=plan.output,
            facts=plan.facts,
            selection=plan.selection.settled(folder.uri),
            duplicates=plan.duplicates,
            reader=plan.reader,
            pictures=plan.pictures,
            digest=digest_of(dataset.digests),
            labels=check_labels(dataset.uri, dataset.digests, plan.facts.taxonomies),
            folder=folder.uri,
        )


@dataclasses.dataclass(frozen=True)
class ReportPlan:
    """A report that could start.

    Attributes:
        dataset: the dataset.
        page: URI of the page.
        facts: what the dataset says of itself.
        selection: the rows that are looked at.
        duplicates: URI of a selection that `deduplicate` wrote; empty without one.
        reader: how the sources were read.
        pictures: whether the page has pictures.
    """

    dataset: Dataset
    page: str
    facts: Facts
    selection: Selection
    duplicates: str
    reader: ReaderOptions
    pictures: bool

    @property
    def output(self) -> str:
        """URI of a folder beside the page, which is there only while the page is made."""
        return f"{self.page}.unfinished"  # not the page's own folder, in which `_temporary` may be the user's

    def finished(self) -> Mapping[str, Any] | None:
        """Return None: a page is made anew each time, since its sources may have come back."""
        return None


def plan_report(
    dataset: storage.Place,
    output: storage.Place = PAGE,
    *,
    selection: storage.Places = (),
    duplicates: storage.Place | None = None,
    pictures: bool = True,
    allow_uri: storage.Places = (),
    overwrite: bool = False,
) -> ReportPlan:
    """Check the arguments of `report_embeddings`, and that the dataset and the output can be used."""
    opened = Dataset.open(dataset)
    replaces = storage.as_setting(overwrite, "overwrite", "bool")
    page = check_page(output, "--output", opened.uri, opened.shards.values(), replaces)
    chosen = Selection.open(opened, selection)
    groups = _duplicates(opened, chosen, duplicates)
    facts = Facts.of(opened, chosen.places, groups)
    reader = reader_options(facts.made["settings"], storage.as_names(allow_uri, "allow_uri") if allow_uri else ())
    return ReportPlan(opened, page, facts, chosen, groups, reader, storage.as_setting(pictures, "pictures", "bool"))


def lost_pictures(page: str) -> int:
    """Return how many pictures a page lacks because their sources are gone or have changed."""
    found = _LOST.search(storage.read_bytes(page, _BEGINNING))
    return int(found[1]) if found else 0


def _duplicates(dataset: Dataset, selection: Selection, given: storage.Place | None) -> str:
    """Return the URI of a selection with groups of duplicates: the given one, or the first of the selections."""
    if given is not None:
        uri = storage.normalise(storage.as_uri(given, "duplicates"))
        if not _has_groups(uri):
            raise SelectionError(f"--duplicates {uri} has no {GROUPS}/; give a folder that deduplicate wrote")
        Selection.open(dataset, uri)
        return uri
    return next((uri for uri in selection.folders if _has_groups(uri)), "")


def _has_groups(uri: str) -> bool:
    return storage.exists(storage.join(uri, GROUPS))
