"""What a filter keeps of one part, and the keys of what it ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.footers import part_names, part_uri
from clip_transforms.parts.reader import KEYS, DatasetError, read_table
from clip_transforms.select.candidates import Candidates, Left, evaluated
from clip_transforms.select.expression import Expression, names_of
from clip_transforms.select.fence import taxonomy_of
from clip_transforms.select.passed import floats_of, read_passed
from clip_transforms.select.sample import sampled
from clip_transforms.select.selection import Selection
from schemas.embeddings import EMBEDDINGS

_CURE = "correct the expression; try_cast gives null where a cast fails"
_BEGUN = f"{_CURE}, and --overwrite replaces an output that has begun"  # in the middle of a run


@dataclasses.dataclass(frozen=True)
class Filter:
    """A filter that has been checked; `Filter.of` makes one. It is small and can be sent to workers.

    The conditions apply in this order: selection, where, sample, top.

    Attributes:
        where: which rows may stay; None for all.
        by: what rows are ranked by; None if they are not ranked.
        top_fraction, top_count: how much of the ranked rows stays; at most one of them.
        sample_fraction, seed: the seeded sample that is taken; None for no sample.
        selection: which rows are looked at.
        classes: taxonomy whose labels are read → what they are made with; see `check_labels`.
        floats: columns of the conditions that are floats, if DuckDB may read the files; see `select/passed.py`.
    """

    where: Expression | None
    by: Expression | None
    top_fraction: float | None
    top_count: int | None
    sample_fraction: float | None
    seed: int
    selection: Selection
    classes: Mapping[str, str]
    floats: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        where: str | None = None,
        by: str | None = None,
        top_fraction: float | None = None,
        top_count: int | None = None,
        sample_fraction: float | None = None,
        seed: int | None = None,
        selection: storage.Places = (),
    ) -> Filter:
        """Check the settings of a filter.

        Raises:
            ValueError: or one of its subclasses, in one sentence.
        """
        numbers = _numbers(top_fraction, top_count, sample_fraction, seed)
        ranks = top_fraction is not None or top_count is not None
        if by is not None and not ranks:
            raise ValueError(f"--by {by!r} ranks rows, so it needs --top_fraction or --top_count")
        if where is None and not ranks and sample_fraction is None and not selection:
            raise ValueError("nothing is asked for; give --where, --top_fraction, --top_count or --sample_fraction")
        schema = columns_of(dataset)
        condition = _expression("--where", where, schema)
        rank = _expression("--by", (by or "clip_score") if ranks else None, schema)
        used = {taxonomy_of(name) for name in names_of([condition, rank])}
        classes = check_labels(dataset.uri, dataset.digests, sorted(used & set(dataset.taxonomies)))
        floats = floats_of(schema, names_of([condition, rank]))
        made = cls(condition, rank, *numbers, Selection.open(dataset, selection), classes, floats)
        made._try_out(dataset)
        return made

    def _try_out(self, dataset: Dataset) -> None:
        """Refuse expressions that fail on the first part that has rows, before anything is written."""
        first = next((part for part in dataset.parts if dataset.rows[part]), None)
        if first and not all(one is None or one.is_column for one in (self.where, self.by)):
            self.candidates(dataset.uri, [(first, dataset.digests[first])], cure=_CURE)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values: only what was given."""
        given = {
            "where": self.where and self.where.text,
            "by": self.by and self.by.text,
            "top_fraction": self.top_fraction,
            "top_count": self.top_count,
            "sample_fraction": self.sample_fraction,
            "seed": None if self.sample_fraction is None else self.seed,
            "selection": list(self.selection.identity) or None,
            "classes": self.classes or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def reads_embeddings(self) -> bool:
        """Whether a condition reads embeddings, which are large."""
        return any(name in EMBEDDINGS for name in names_of([self.where, self.by]))

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that rows are ranked by: float32, float64, int64 or uint64."""
        return np.dtype(self.by.rank if self.by else "float32")

    def candidates(
        self,
        dataset: str,
        parts: Sequence[tuple[str, str]],
        also: Sequence[str] = (),
        cure: str = _BEGUN,
        all_rows: bool = False,
    ) -> Candidates:
        """Find the rows of some parts that may stay, before the best of them are known.

        Args:
            dataset: URI of the dataset.
            parts: (name, digest) of the parts, at least one; all their columns that are needed must fit into memory.
            also: columns to read besides.
            cure: what a user can do if an expression fails, for the message.
            all_rows: whether the tables must hold the rows that `where` drops too, so that places are those of a part.
        Raises:
            DatasetError: if a part has another digest by now, or labels of other classes.
            ExpressionError: if an expression fails on a row.
        """
        passed = None
        if self.where and self.floats is not None and not self.selection.places and not all_rows:
            columns = self._columns(also, [self.by])
            passed = read_passed(dataset, parts, self.where, columns, self.floats, self.classes)
        left = passed[0] if passed else Left.all_of(dict(self._read(dataset, parts, also)))
        if self.selection.places:
            masks = [self.selection.mask(part, table.column("row")) for part, table in left.tables.items()]
            left = left.keep("dropped.selection", np.concatenate(masks))
        if self.where:
            truth = passed[1] if passed else evaluated(self.where, left, cure)
            left = left.keep("null", valid := truth.is_valid().to_numpy(zero_copy_only=False))
            left = left.keep("dropped.where", pc.fill_null(truth, False).to_numpy(zero_copy_only=False)[valid])
        if self.sample_fraction is not None:
            left = left.keep("dropped.sample", self._sampled(left, self.sample_fraction))
        if self.by is None:
            return Candidates(left, None)
        return Candidates.ranked_by(left, evaluated(self.by, left, cure), self.dtype)

    def _read(
        self, dataset: str, parts: Sequence[tuple[str, str]], also: Sequence[str]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the columns of each part that are needed."""
        names = self._columns(also, [self.where, self.by])
        labels = {f"labels/{taxonomy}": digest for taxonomy, digest in self.classes.items()}
        for part, digest in parts:
            made_from = {"embeddings": digest, **labels}
            yield part, read_table(dataset, part, names, [*self.classes], made_from=made_from)

    def _columns(self, also: Sequence[str], expressions: Sequence[Expression | None]) -> list[str]:
        """Return the columns that are needed, at least one."""
        names = {*names_of(expressions), *also}
        names |= {"row"} if self.selection.places else set()
        names |= {"shard", "row"} if self.sample_fraction is not None else set()
        return sorted(names or {"row"})

    def _sampled(self, left: Left, fraction: float) -> np.ndarray:
        """Say which of the rows that are left are in the sample."""
        found = [np.empty(0, bool)]
        for table, places in zip(left.tables.values(), left.places_of_each, strict=True):
            if table.num_rows:
                rows = table.column("row").to_numpy()[places]
                found.append(sampled(table.column("shard")[0].as_py(), rows, fraction, self.seed))
        return np.concatenate(found)


def _numbers(
    top_fraction: float | None, top_count: int | None, sample_fraction: float | None, seed: int | None
) -> tuple[float | None, int | None, float | None, int]:
    """Check the numbers of a filter, and return them."""
    if top_fraction is not None and top_count is not None:
        raise ValueError("--top_fraction and --top_count are both given; give one of them")
    for name, value in (("top_fraction", top_fraction), ("sample_fraction", sample_fraction)):
        if value is not None and not 0 <= storage.as_setting(value, name, "float") <= 1:
            hint = f"; for {value:g} % give {value / 100:g}" if 1 < value <= 100 else ""
            raise ValueError(f"--{name} is {value}, but it is a fraction of the rows and must lie in [0, 1]{hint}")
    if top_count is not None and storage.as_setting(top_count, "top_count", "int") < 1:
        raise ValueError(f"--top_count is {top_count}, but it is a number of rows and must be 1 or more")
    if seed is not None and sample_fraction is None:
        raise ValueError(f"--seed is {seed}, but it is that of a sample; give --sample_fraction with it, or omit it")
    return top_fraction, top_count, sample_fraction, storage.as_setting(seed or 0, "seed", "int")


def _expression(flag: str, text: str | None, schema: pa.Schema) -> Expression | None:
    return None if text is None else Expression.of(flag, storage.as_setting(text, flag.strip("-"), "str"), schema)


def columns_of(dataset: Dataset) -> pa.Schema:
    """Return the columns of a dataset; those of labels are called `<taxonomy>.<column>`."""
    fields = list(_schema(part_uri(dataset.uri, "embeddings", dataset.parts[0]), dataset.embed_dim))
    for taxonomy in dataset.taxonomies:
        labelled = sorted(part_names(dataset.uri, f"labels/{taxonomy}") & set(dataset.parts))
        if labelled:  # where some parts have no labels, `check_labels` says so
            uri = part_uri(dataset.uri, f"labels/{taxonomy}", labelled[0])
            columns = [field for field in _schema(uri, dataset.embed_dim) if field.name not in KEYS]
            named = [field.with_name(f"{taxonomy}.{field.name}") for field in columns]
            own = {field.name for field in fields}  # a column of the user's may have such a name; see `check_labels`
            fields += [field for field in named if field.name not in own]
    return pa.schema(fields)


def _schema(uri: str, d: int) -> pa.Schema:
    """Read the schema of a part, with embeddings as `read_table` returns them."""
    try:
        with storage.open_input(uri) as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{uri} cannot be read: {error}") from error
    fixed = [f.with_type(pa.list_(f.type.value_type, d)) if f.name in EMBEDDINGS else f for f in schema]
    return pa.schema(fixed)
