"""What a dataset says of itself: the facts on a report that no row has to be read for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.preprocess import EXIF_APPLIED, MAX_IMAGE_PIXELS
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.manifest import existing_dataset, read_run
from clip_transforms.parts.reader import DatasetError
from schemas.samples import MODALITIES

_RUNS = 10  # the most runs that a page lists


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a dataset without its rows. It is small and can be sent to workers.

    Attributes:
        dataset: URI of the dataset.
        parts: number of parts.
        counts: sum of the counts of all parts.
        provenance: facts of the parts' footers, see `Dataset.provenance`.
        made: content of `_dataset.json`.
        run: content of `run.json`; empty if no run has come to its end.
        runs: runs that embedded something, the last one first, as far as a page lists them.
        classes: taxonomy → names of its classes, of those taxonomies whose labels are whole.
        unlabelled: for each other taxonomy, what is wrong with its labels.
        selection: what was given as selections.
        duplicates: content of `selection.json` of a selection that `deduplicate` wrote; empty without one.
    """

    dataset: str
    parts: int
    counts: Mapping[str, int]
    provenance: Mapping[str, Any]
    made: Mapping[str, Any]
    run: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    classes: Mapping[str, Sequence[str]]
    unlabelled: Sequence[str] = ()
    selection: Sequence[str] = ()
    duplicates: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset, selection: Sequence[str] = (), duplicates: str = "") -> Facts:
        """Collect the facts of a dataset.

        Args:
            dataset: the dataset.
            selection: URIs of the selections whose rows alone are looked at.
            duplicates: URI of a selection that `deduplicate` wrote, if there is one.
        """
        uri = dataset.uri
        faults = {taxonomy: _fault(dataset, taxonomy) for taxonomy in dataset.taxonomies}
        record = json.loads(storage.read_bytes(storage.join(duplicates, "selection.json"))) if duplicates else {}
        return cls(
            uri,
            len(dataset.parts),
            dict(dataset.counts),
            dataset.provenance,
            existing_dataset(uri),
            read_run(uri) if storage.exists(storage.join(uri, "run.json")) else {},
            _runs(uri),
            {taxonomy: _classes(uri, taxonomy) for taxonomy, fault in faults.items() if not fault},
            [fault for fault in faults.values() if fault],
            selection,
            record,
        )

    @property
    def taxonomies(self) -> tuple[str, ...]:
        """Names of the taxonomies."""
        return tuple(self.classes)

    @property
    def side(self) -> int:
        """Image side of the model in pixels; 0 if the dataset does not say it."""
        architecture = self.provenance.get("architecture")
        return int(architecture["image_side"]) if isinstance(architecture, Mapping) else 0

    @property
    def modality(self) -> str:
        """The modality that a map is made of: images if there are some."""
        return next((m for m in MODALITIES if self.counts.get(f"{m}.embedded")), MODALITIES[0])

    @property
    def exif_orientation(self) -> str:
        """What the dataset does with EXIF orientation."""
        return "apply" if EXIF_APPLIED in self.made["settings"].get("preprocessing", "") else "ignore"

    @property
    def max_pixels(self) -> int:
        """The most pixels of a picture that the dataset took."""
        return int(self.made["settings"].get("max_image_pixels") or MAX_IMAGE_PIXELS)


def _runs(uri: str) -> list[dict[str, Any]]:
    """Read the last runs that embedded something."""
    found: list[dict[str, Any]] = []
    for name in sorted(storage.names_in(storage.join(uri, "runs"), ".json"), reverse=True):
        run = json.loads(storage.read_bytes(storage.join(uri, "runs", name)))
        if run.get("speed", {}).get("samples"):
            found.append(run)
        if len(found) == _RUNS:
            break
    return found


def _fault(dataset: Dataset, taxonomy: str) -> str:
    """Return what is wrong with the labels of a taxonomy; an empty text if they are whole."""
    try:
        check_labels(dataset.uri, dataset.digests, [taxonomy])
    except DatasetError as error:
        return str(error)
    return ""


def _classes(uri: str, taxonomy: str) -> list[str]:
    place = storage.join(uri, "taxonomies", f"{taxonomy}.parquet")
    if not storage.exists(place):
        return []
    with storage.open_input(place) as file:
        return pq.ParquetFile(file).read(["class"], use_threads=False).column("class").to_pylist()
