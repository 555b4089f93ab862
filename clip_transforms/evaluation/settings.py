"""What an evaluation is asked for, checked against the dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.evaluation.classes import Classes, classes_of
from clip_transforms.evaluation.truth import Truth, TruthError, check_known, check_type, class_lists, class_names, flat
from clip_transforms.evaluation.truth_file import TruthFile
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_uri
from clip_transforms.parts.reader import read_table
from schemas.embeddings import EMBEDDINGS

MEASURES = ("zeroshot", "retrieval", "probe")
CLS = "cls"  # the column of a tar's member of that name, as webdatasets hold the class
TEST_FRACTION = 0.2
GROUPS = 200  # the most groups
SPLITS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2}  # values of --split_column


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that has been checked; `Evaluation.of` makes one.

    Attributes:
        measures: which of MEASURES.
        classes: the taxonomies.
        truth: where right classes are found; None if there are none.
        file: the file with the truth; None if a column has it.
        group_column: the column whose values are groups; None for no groups.
        split_column: the column that says which samples train a probe, and which test it; None for a random split.
        test_fraction: how many samples test it then, if no selection names them.
        seed: seed of the split.
    """

    measures: tuple[str, ...]
    classes: tuple[Classes, ...]
    truth: Truth | None
    file: TruthFile | None
    group_column: str | None
    split_column: str | None
    test_fraction: float
    seed: int

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        measure: Any = (),
        taxonomy: Any = (),
        truth_column: str | None = None,
        truth: storage.Place | None = None,
        group_column: str | None = None,
        **split: Any,
    ) -> Evaluation:
        """Check what is asked for.

        Raises:
            ValueError: or one of its subclasses, in one sentence.
        """
        schema = _schema(dataset)
        for flag, name in (("truth_column", truth_column), ("group_column", group_column)):
            _check_column(dataset, schema, flag, name)
        if truth is not None and truth_column is not None:
            raise ValueError("--truth and --truth_column are both given; give one of them")
        _check_used(measure, {"truth": truth, "truth_column": truth_column, "taxonomy": taxonomy or None})
        if truth is None and truth_column is None and CLS in schema.names:
            truth_column = CLS
        with_truth = truth is not None or truth_column is not None
        measures = _measures(measure or _usual(with_truth or bool(group_column or taxonomy)), with_truth, group_column)
        classes = classes_of(dataset, taxonomy) if taxonomy or "zeroshot" in measures else ()
        of, file = _truth(dataset, schema, truth_column, truth, classes) if measures != ("retrieval",) else (None, None)
        if group_column is not None:
            _check_groups(dataset, group_column)
        return cls(measures, classes, of, file, group_column, *_split(dataset, schema, measures, **split))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values: only what was given."""
        random = "probe" in self.measures and self.split_column is None
        given = {
            "measure": list(self.measures),
            "taxonomy": [of.name for of in self.classes] or None,
            "classes": {of.name: of.digest for of in self.classes} or None,
            "truth_column": self.truth.column if self.truth else None,
            "truth": {"file": self.file.uri, "sha256": storage.sha256(self.file.uri)} if self.file else None,
            "group_column": self.group_column,
            "split_column": self.split_column,
            "test_fraction": self.test_fraction if random else None,
            "seed": self.seed if "probe" in self.measures else None,
        }
        return {name: value for name, value in given.items() if value is not None}


def _schema(dataset: Dataset) -> pa.Schema:
    """Return the columns of the embeddings; they are the same in every part."""
    with storage.open_input(part_uri(dataset.uri, "embeddings", dataset.parts[0])) as file:
        return pq.read_schema(file)


def _check_column(dataset: Dataset, schema: pa.Schema, flag: str, name: str | None) -> None:
    if name is None or storage.as_setting(name, flag, "str") in schema.names and name not in EMBEDDINGS:
        return
    there = ", ".join(column for column in schema.names if column not in EMBEDDINGS)
    raise ValueError(f"--{flag} is {name!r}, which {dataset.uri} does not have; its columns are {there}")


def _check_used(measure: Any, given: Mapping[str, Any]) -> None:
    """Refuse settings that retrieval alone does not use."""
    if measure and set(storage.as_names(measure, "measure")) == {"retrieval"}:
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--{name} is for --measure zeroshot and probe; omit it, or add one of these")


def _usual(of_labels: bool) -> str:
    """Say what is measured unless something is asked for."""
    return "zeroshot" if of_labels else "retrieval"


def _measures(asked: Any, with_truth: bool, group_column: str | None) -> tuple[str, ...]:
    """Check what is asked for, and put it in order."""
    measures = storage.as_names(asked, "measure")
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"--measure is {name!r}, but it must be one or more of {', '.join(MEASURES)}")
    if not with_truth and ("probe" in measures or ("zeroshot" in measures and group_column is None)):
        what = "probe" if "probe" in measures else "zeroshot"
        raise ValueError(f"--measure {what} needs the right classes; give --truth_column NAME, or --truth FILE")
    return tuple(name for name in MEASURES if name in measures)


def _truth(
    dataset: Dataset, schema: pa.Schema, column: str | None, place: storage.Place | None, classes: tuple[Classes, ...]
) -> tuple[Truth | None, TruthFile | None]:
    """Check the truth, and that some of it are classes of the taxonomies."""
    names = classes[0].names if classes else ()
    if column is not None:
        check_type(schema.field(column).type, f"--truth_column {column}")
        found = class_names(_first_values(dataset, column), names)
        for of in classes:
            check_known(found, of.names, f"--truth_column {column}", of.name)
        return Truth(column, names=names), None
    if place is None:
        return None, None
    file = TruthFile.read(storage.normalise(storage.as_uri(place, "truth")))
    file.check(dataset)
    values = flat(file.table.column("truth"))
    found = class_lists(values, names).flatten() if file.several else class_names(values, names)
    for of in classes:
        check_known(found, of.names, f"--truth {file.uri}", of.name)
    return Truth(None, several=file.several, names=names), file


def _first_values(dataset: Dataset, column: str) -> pa.Array:
    """Return the values of a column in the first part that has any."""
    values = pa.array([], pa.string())
    for part in dataset.parts:
        values = flat(read_table(dataset.uri, part, [column]).column(column)).drop_null()
        if len(values):
            break
    return values


def _check_groups(dataset: Dataset, column: str) -> None:
    groups = pc.unique(_first_values(dataset, column))
    if len(groups) > GROUPS:
        raise ValueError(
            f"--group_column {column} has {len(groups):,} different values in one part alone, but {GROUPS} groups are "
            "the most; give a column with fewer"
        )


def _split(
    dataset: Dataset,
    schema: pa.Schema,
    measures: tuple[str, ...],
    split_column: str | None = None,
    test_fraction: float | None = None,
    test: bool = False,
    seed: int | None = None,
) -> tuple[str | None, float, int]:
    """Check how samples are split for a probe. `test` says whether selections name those that test it."""
    given = {"split_column": split_column, "test_fraction": test_fraction, "test": test or None}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if "probe" not in measures and (named or seed is not None):
        raise ValueError(f"{(named or ['--seed'])[0]} is for --measure probe; omit it, or add probe")
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are given; give one of them")
    _check_column(dataset, schema, "split_column", split_column)
    if split_column is not None:
        values = _first_values(dataset, split_column).cast(pa.string()).to_pylist()
        if values and not any(value.lower() in SPLITS for value in values):
            raise ValueError(f"--split_column {split_column} holds {values[0]!r}, but it must say train, val or test")
    fraction = TEST_FRACTION if test_fraction is None else storage.as_setting(test_fraction, "test_fraction", "float")
    if not 0 < fraction < 1:
        raise ValueError(f"--test_fraction is {fraction}, but it is a fraction of the samples and must lie in (0, 1)")
    return split_column, fraction, 0 if seed is None else storage.as_setting(seed, "seed", "int")


def check_one_class(evaluation: Evaluation) -> None:
    """Refuse a probe where samples have several classes.

    Raises:
        TruthError: naming the file.
    """
    if "probe" in evaluation.measures and evaluation.truth and evaluation.truth.several:
        where = evaluation.file.uri if evaluation.file else ""
        raise TruthError(f"--measure probe needs one class a sample, but --truth {where} lists several; omit probe")
