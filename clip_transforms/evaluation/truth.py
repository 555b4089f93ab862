"""Truth: the right class or classes of a sample, as names."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.footers import part_uri

FOLDER = "truth"  # of the settled file, with a part for each part of the dataset that it names rows of
_INDEX = re.compile(r"\d+")


class TruthError(ValueError):
    """A truth that cannot be used, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """Where the right classes of samples are found. It is small and can be sent to workers.

    Attributes:
        column: the column of the dataset; None if a file has them.
        folder: URI of the settled file.
        several: whether a sample has a list of classes.
        names: names that an index stands for; empty if there is no taxonomy.
    """

    column: str | None
    folder: str = ""
    several: bool = False
    names: tuple[str, ...] = ()

    def read(self, part: str, table: pa.Table) -> pa.Array:
        """Return the names of the right classes of the rows of a part; null where they are not known.

        Args:
            part: name of the part.
            table: all rows of the part, with `row` and the column.
        Returns:
            string [n], or list<string> [n] of several.
        """
        if self.column is not None:
            return class_names(flat(table.column(self.column)), self.names)
        uri = part_uri(self.folder, FOLDER, part)
        kind = pa.list_(pa.string()) if self.several else pa.string()
        if not storage.exists(uri):
            return pa.nulls(table.num_rows, kind)
        with storage.open_input(uri) as file:
            named = pq.ParquetFile(file).read(use_threads=False)
        found = flat(named.column("truth")).take(flat(pc.index_in(table.column("row"), flat(named.column("row")))))
        return class_lists(found, self.names) if self.several else class_names(found, self.names)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array, without a dictionary."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def check_type(type_: pa.DataType, what: str) -> None:
    """Refuse a type that can name no classes.

    Raises:
        TruthError: naming the column.
    """
    of = type_.value_type if pa.types.is_dictionary(type_) else type_
    if not (pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_integer(of) or _is_float(of)):
        raise TruthError(f"{what} is of type {of}, but truth is the name of a class (string) or its index (int32)")


def class_names(values: pa.Array, names: Sequence[str]) -> pa.Array:
    """Return the names that values of a truth stand for.

    A number is an index into the classes, from 0. So is a text of digits, also with `.0` behind them, unless it is a
    name, or the name of any class is made of digits. What is no class stays as it is.

    Args:
        values: texts, whole numbers or floats, as pandas has whole numbers with nulls; NaN is null.
        names: the classes.
    Returns:
        string [n].
    """
    if _is_float(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.equal(pc.floor(values), values)
        texts = pc.if_else(whole, pc.cast(values, pa.int64(), safe=False).cast(pa.string()), values.cast(pa.string()))
        return _by_index(texts, names)
    texts = values.cast(pa.string())
    if not pa.types.is_integer(values.type):
        texts = pc.if_else(pc.equal(texts, ""), None, texts)
        if any(_INDEX.fullmatch(name) for name in names):
            return texts
        # pandas writes a column of whole numbers with gaps as 1.0, 2.0 and nothing.
        texts = pc.if_else(pc.is_in(texts, pa.array(names, pa.string())), texts, _whole(texts))
    return _by_index(texts, names)


def _whole(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, r"^(\d+)\.0+$", r"\1")


def _by_index(texts: pa.Array, names: Sequence[str]) -> pa.Array:
    indices = pa.array([str(index) for index in range(len(names))], pa.string())
    return pc.coalesce(pa.array(names, pa.string()).take(pc.index_in(texts, indices)), texts)


def class_lists(values: pa.Array, names: Sequence[str]) -> pa.Array:
    """Return the names that lists of a truth stand for, see `class_names`.

    Args:
        values: lists.
        names: the classes.
    Returns:
        list<string> [n].
    """
    flattened = class_names(flat(values.flatten()), names)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, flattened, mask=values.is_null())


def codes_of(truth: pa.Array, names: Sequence[str]) -> np.ndarray:
    """Return the indices of classes, int64 [n]; k where the truth is null, k + 1 where it is no class.

    Args:
        truth: string [n].
        names: the k classes.
    """
    found = pc.fill_null(pc.index_in(truth, pa.array(names, pa.string())), len(names) + 1)
    return np.where(np.asarray(truth.is_null()), len(names), np.asarray(found)).astype(np.int64)


def flags_of(truth: pa.Array, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return which classes samples have.

    Args:
        truth: list<string> [n].
        names: the k classes.
    Returns:
        bool [n, k]; and the values that are no class.
    """
    flags = np.zeros((len(truth), len(names)), bool)
    values = truth.flatten()
    rows = np.asarray(pc.list_parent_indices(truth))
    codes = codes_of(values, names)
    flags[rows[codes < len(names)], codes[codes < len(names)]] = True
    return flags, values.filter(pa.array(codes == len(names) + 1)).to_pylist()


def check_known(values: pa.Array, names: Sequence[str], what: str, taxonomy: str) -> None:
    """Refuse a truth of which no value is a class.

    Args:
        values: string [n], some values.
        names: the classes.
        what: the column or file, for the message.
        taxonomy: name of the taxonomy.
    Raises:
        TruthError: naming a value and the nearest class.
    """
    values = values.drop_null()
    if not len(values) or pc.any(pc.is_in(values, pa.array(names, pa.string()))).as_py():
        return
    value = values[0].as_py()
    near = difflib.get_close_matches(value, names, 1)
    hint = f"; is {near[0]!r} meant?" if near else f"; its classes are {', '.join(names[:5])}{' …' * (len(names) > 5)}"
    raise TruthError(f"{what} holds {value!r}, which is no class of taxonomy {taxonomy}, nor is any other value{hint}")


def _is_float(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_)
