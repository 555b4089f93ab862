"""Where a search looks: which embeddings of which rows, and how many rows are wanted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.reader import DatasetError
from clip_transforms.select.filtering import Filter
from clip_transforms.select.query_file import QueryError
from schemas.samples import MODALITIES

AGAINST = (*MODALITIES, "both")
TOP_K = 10
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Searched:
    """What is searched, checked; `Searched.of` makes one.

    Attributes:
        against: one of AGAINST.
        top_k: number of rows a query.
        rows: which rows are searched; None for all.
        classes: taxonomy whose labels go along → digest of its classes.
    """

    against: str
    top_k: int
    rows: Filter | None
    classes: Mapping[str, str]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        against: str | None = None,
        top_k: int = TOP_K,
        where: str | None = None,
        selection: storage.Places = (),
    ) -> Searched:
        """Check what is asked for; the arguments are those of `search_embeddings`.

        Raises:
            ValueError: or one of its subclasses, in one sentence.
        """
        if storage.as_setting(top_k, "top_k", "int") < 1:
            raise QueryError(f"--top_k is {top_k}, but it is a number of rows and must be 1 or more")
        rows = Filter.of(dataset, where=where, selection=selection) if where is not None or selection else None
        return cls(modality_of(dataset, against), top_k, rows, _labels(dataset))

    @property
    def columns(self) -> tuple[str, ...]:
        """The embeddings that are compared."""
        return tuple(f"{name}_embedding" for name in (MODALITIES if self.against == "both" else (self.against,)))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values."""
        conditions = self.rows.settings if self.rows else {}
        classes = {"classes": dict(self.classes)} if self.classes else {}
        return {**conditions, "against": self.against, "top_k": self.top_k, **classes}

    @property
    def described(self) -> tuple[str, ...]:
        """The conditions in words, for a person."""
        if self.rows is None:
            return ()
        where = [f"where {self.rows.where.text}"] if self.rows.where else []
        return (*where, *(f"selection {place}" for place in self.rows.selection.places))

    def settled(self, scratch: str) -> Filter | None:
        """Return which rows are searched, so that it is small and can be sent to workers."""
        return self.rows and dataclasses.replace(self.rows, selection=self.rows.selection.settled(scratch))


def modality_of(dataset: Dataset, asked: str | None, allowed: Sequence[str] = AGAINST) -> str:
    """Decide whose embeddings are compared: those that were asked for, or those that there are.

    Args:
        dataset: the dataset.
        asked: value of `--against`, or None.
        allowed: its allowed values.
    Raises:
        QueryError: if it is none of these, or the dataset holds no such embeddings.
    """
    there = [modality for modality in MODALITIES if dataset.counts.get(f"{modality}.embedded")]
    if asked is None:
        return (there or MODALITIES)[0]
    if asked not in allowed:
        raise QueryError(f"--against is {asked!r}, but it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
    lacking = [modality for modality in MODALITIES if asked in (modality, "both") and modality not in there]
    if there and lacking:
        raise QueryError(
            f"--against is {asked}, but {dataset.uri} holds no {lacking[0]} embeddings; --against {there[0]} searches "
            f"its {there[0]}s"
        )
    return asked


def _labels(dataset: Dataset) -> dict[str, str]:
    """Return taxonomy → digest of its classes, of those whose labels are complete; they only go along."""
    classes: dict[str, str] = {}
    for taxonomy in dataset.taxonomies:
        try:
            classes |= check_labels(dataset.uri, dataset.digests, [taxonomy])
        except DatasetError as error:
            _LOGGER.warning("%s; the results are without these labels", error)
    return classes
