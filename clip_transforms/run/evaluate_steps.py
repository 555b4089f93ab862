"""What the steps of `evaluate` have in common.

Files below `_work/` of the output carry vectors and scores from step to step. Each is written whole and stays until the
end, so that the same command again makes only those that are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.evaluation.classes import Classes
from clip_transforms.evaluation.rows import Rows, Source
from clip_transforms.labels.batch import Classifier
from clip_transforms.labels.classes import embed_classes, read_classifier
from clip_transforms.run.job import read_taxonomies
from clip_transforms.run.new_output import WORK, NewOutput
from clip_transforms.run.over_parts import Step, read_items
from clip_transforms.select.selection import Selection

RUN_ROWS = 16_384  # rows of consecutive parts that one task reads
Run = tuple[int, list[Sequence[Any]]]  # number of the run of parts, and its parts: name and digest
State = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """What every step knows; it is sent to every worker.

    Attributes:
        new: the output.
        source: where rows come from.
        classes: the taxonomies, without their texts.
        checkpoint: what embeds the classes of those that the dataset lacks; None if it lacks none.
        test: the rows that test a probe; None if a column or a random split says so.
        split_column: the column that says so.
        test_fraction, seed: the random split.
        all_captions: whether the dataset has all captions of a sample.
        runs: number of runs of parts.
        folder: URI of the run's temporary folder.
    """

    new: NewOutput
    source: Source
    classes: tuple[Classes, ...]
    checkpoint: Checkpoint | None
    test: Selection | None
    split_column: str | None
    test_fraction: float
    seed: int
    all_captions: bool
    runs: int
    folder: str

    def work(self, *names: str | int) -> str:
        """URI of a file or folder below `_work/`."""
        return storage.join(self.new.uri, WORK, *map(str, names))

    def works(self, kind: str) -> list[str]:
        """URIs of the files of one kind, one for each run of parts."""
        return [self.work(kind, number) for number in range(self.runs)]

    def classifiers(self) -> dict[str, Classifier]:
        """Read the class embeddings: taxonomy → classifier."""
        return {of.name: read_classifier(of.uri or _made_uri(self.new, of), of.digest) for of in self.classes}

    def read(self, part: Sequence[Any], vectors: str = "image_embedding", also: Sequence[str] = ()) -> Rows:
        """Read the rows of a part."""
        name, digest = part
        return self.source.read(name, digest, vectors, also)


def _made_uri(new: NewOutput, of: Classes) -> str:
    """URI of class embeddings that the dataset lacks."""
    return storage.join(new.uri, "taxonomies", f"{of.name}.parquet")


@dataclasses.dataclass(frozen=True)
class OverRuns(Step):
    """A step over all runs of parts."""

    run: Evaluating
    threaded = True

    def items(self, state: Any) -> Iterator[Run]:
        """Yield the runs of parts."""
        yield from read_items(self.run.folder)


@dataclasses.dataclass(frozen=True)
class EmbedClasses(Step):
    """Embed the classes of taxonomies that the dataset lacks, once, on one worker; they stay in `taxonomies/`."""

    run: Evaluating

    def items(self, state: Any) -> list[None]:
        """Yield one item if there is anything to embed."""
        return [None] if self.run.checkpoint else []

    def do(self, item: None) -> dict[str, int]:
        """Embed the classes; how many taxonomies."""
        assert self.run.checkpoint
        taxonomies = read_taxonomies(self.run.folder)
        embed_classes(self.run.new.uri, taxonomies, self.run.checkpoint, "auto", self.run.folder)
        return {"taxonomies": len(taxonomies)}

    def after(self, state: Any, total: Mapping[str, int]) -> dict[str, Any]:
        """Begin with nothing measured."""
        return {}


def runs_of(parts: Sequence[tuple[str, str]], rows: Sequence[int]) -> list[Run]:
    """Put consecutive parts together until they have RUN_ROWS rows.

    Args:
        parts: name and digest of each part.
        rows: rows of each part.
    """
    runs: list[Run] = []
    filled = 0
    for part, count in zip(parts, rows, strict=True):
        if not runs or filled + count > RUN_ROWS:
            runs.append((len(runs), []))
            filled = 0
        runs[-1][1].append(part)
        filled += count
    return runs
