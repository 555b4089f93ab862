"""What a filter keeps of one part, and the keys of what it ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.footers import part_names, part_uri
from clip_transforms.parts.reader import KEYS, DatasetError, read_table
from clip_transforms.select.cut import ordered
from clip_transforms.select.expression import Expression, names_of
from clip_transforms.select.sample import sampled
from clip_transforms.select.selection import Selection
from schemas.embeddings import EMBEDDINGS


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
        classes: taxonomy whose labels are read → digest of its classes.
    """

    where: Expression | None
    by: Expression | None
    top_fraction: float | None
    top_count: int | None
    sample_fraction: float | None
    seed: int
    selection: Selection
    classes: Mapping[str, str]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        where: str | None = None,
        by: str | None = None,
        top_fraction: float | None = None,
        top_count: int | None = None,
        sample_fraction: float | None = None,
        seed: int = 0,
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
        used = {name.partition(".")[0] for name in names_of([condition, rank]) if "." in name}
        classes = check_labels(dataset.uri, dataset.digests, sorted(used & set(dataset.taxonomies)))
        return cls(condition, rank, *numbers, Selection.open(dataset, selection), classes)

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
        """Type of the values that rows are ranked by: float32, or float64 for everything else."""
        return np.dtype(np.float32 if self.by and self.by.is_float32 else np.float64)

    def candidates(self, dataset: str, parts: Sequence[tuple[str, str]], also: Sequence[str] = ()) -> list[Candidates]:
        """Find the rows of some parts that may stay, before the best of them are known.

        Args:
            dataset: URI of the dataset.
            parts: (name, digest) of the parts, of which all columns that are needed must fit into memory.
            also: columns to read besides.
        Returns:
            The candidates of each part.
        Raises:
            DatasetError: if a part has another digest by now, or labels of other classes.
        """
        names = {*names_of([self.where, self.by]), *also}
        names |= {"row"} if self.selection.places else set()
        names |= {"shard", "row"} if self.sample_fraction is not None else set()
        labels = {f"labels/{taxonomy}": digest for taxonomy, digest in self.classes.items()}
        tables = [
            read_table(
                dataset, part, sorted(names or {"row"}), [*self.classes], made_from={"embeddings": digest, **labels}
            )
            for part, digest in parts
        ]
        truths = self.where.evaluate_each(tables) if self.where else [None] * len(tables)
        ranks = self.by.evaluate_each(tables) if self.by else [None] * len(tables)
        return [
            self._candidates(*of_part)
            for of_part in zip((part for part, _ in parts), tables, truths, ranks, strict=True)
        ]

    def _candidates(self, part: str, table: pa.Table, truth: pa.Array | None, rank: pa.Array | None) -> Candidates:
        """Return the candidates of one part.

        Args:
            part: name of the part.
            table: its rows.
            truth: values of `where`.
            rank: values of `by`.
        """
        stays, counts = np.ones(table.num_rows, bool), Counter(seen=table.num_rows)

        def drop(reason: str, keep: np.ndarray) -> None:
            counts[reason] += int(np.count_nonzero(stays & ~keep))
            np.logical_and(stays, keep, out=stays)

        if self.selection.places:
            drop("dropped.selection", self.selection.mask(part, table.column("row")))
        if truth is not None:
            drop("null", truth.is_valid().to_numpy(zero_copy_only=False))
            drop("dropped.where", pc.fill_null(truth, False).to_numpy(zero_copy_only=False))
        if self.sample_fraction is not None and table.num_rows:
            rows = table.column("row").to_numpy()
            drop("dropped.sample", sampled(table.column("shard")[0].as_py(), rows, self.sample_fraction, self.seed))
        if rank is None:
            return Candidates(table, np.flatnonzero(stays), counts, None)
        values = rank.cast(pa.from_numpy_dtype(self.dtype), safe=False)
        numbers = values.to_numpy(zero_copy_only=False)  # null becomes NaN
        ranked = int(np.count_nonzero(stays))
        drop("null", ~np.isnan(numbers))
        places = np.flatnonzero(stays)
        return Candidates(table, places, counts, numbers[places], ranked)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows of a part that may stay.

    Attributes:
        table: the columns that were read, of all rows of the part.
        places: int64 [m], places in the table of the rows that may stay, ascending.
        counts: what became of the others: `seen`, `null` and `dropped.<reason>`.
        values: float32 or float64 [m], what the rows are ranked by; None if they are not.
        ranked: number of rows that are ranked, with those whose value is null or NaN.
    """

    table: pa.Table
    places: np.ndarray
    counts: Counter
    values: np.ndarray | None
    ranked: int = 0

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """The values as ordered integers, uint32 or uint64 [m]."""
        assert self.values is not None
        return ordered(self.values)

    def kept(self, cut: int | None, quota: int | None) -> tuple[pa.Table, Counter]:
        """Return the rows that stay, and the counts of the whole part.

        Args:
            cut: the smallest key that stays; None if all stay.
            quota: how many of the rows with just this key stay, the first ones; None for all.
        """
        places, counts = self.places, Counter(self.counts)
        ranks = {} if self.values is None else {"by": self.values}
        if cut is not None:
            stays = self.keys >= cut
            if quota is not None:
                ties = np.flatnonzero(self.keys == cut)
                stays[ties[quota:]] = False
            places, ranks = places[stays], {"by": ranks["by"][stays]}
            counts["dropped.top"] += int(np.count_nonzero(~stays))
        counts["kept"] = len(places)
        table = self.table.select(KEYS).take(places)
        for name, values in ranks.items():
            table = table.append_column(name, pa.array(values + 0))
        return table, counts


def _numbers(
    top_fraction: float | None, top_count: int | None, sample_fraction: float | None, seed: int
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
    return top_fraction, top_count, sample_fraction, storage.as_setting(seed, "seed", "int")


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
            fields += [field.with_name(f"{taxonomy}.{field.name}") for field in columns]
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
