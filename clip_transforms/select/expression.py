"""SQL expressions over the rows of a part: checked on the launcher, evaluated by DuckDB.

An expression sees the columns of one part and nothing else; `clip_transforms/select/fence.py` sees to that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.select.fence import (
    ExpressionError,
    check_apart,
    check_node,
    columns_of,
    known_columns,
    nodes,
    open_connection,
    parse,
    said,
    taxonomy_of,
    too_deep,
)
from clip_transforms.select.floats import to_sql, with_float_rules

_DIGITS = 15  # decimals of so many stay apart as float64


@dataclasses.dataclass(frozen=True)
class Expression:
    """An expression that has been checked; `Expression.of` makes one. It is small and can be sent to workers.

    Attributes:
        flag: the flag that it came from, for messages.
        text: what the user wrote.
        sql: what DuckDB evaluates: the same, with floats as `select/floats.py` has them.
        columns: names of the columns of embeddings and labels that it reads, as `read_table` knows them.
        rank: of `--by` the type in which its values are ranked: float32, float64, int64 or uint64.
        is_column: whether it is a column and nothing else, which DuckDB need not evaluate.
    """

    flag: str
    text: str
    sql: str
    columns: tuple[str, ...]
    rank: str = ""
    is_column: bool = False

    @classmethod
    def of(cls, flag: str, text: str, schema: pa.Schema) -> Expression:
        """Check an expression.

        Args:
            flag: `--where`, which must be true or false, or `--by`, which must be a number.
            text: the expression.
            schema: columns that there are; those of labels are called `<taxonomy>.<column>`.
        Raises:
            ExpressionError: if it is no expression of this kind, or reads something else than the columns.
        """
        tree = parse(flag, text)
        known = known_columns(schema)
        for node in nodes(tree):
            check_node(flag, text, node, known)
        check_apart(flag, tree, known)
        columns = tuple(sorted({name for node in nodes(tree) for name in columns_of(node, known)}))
        is_column = (
            tree["class"] == "COLUMN_REF" and [schema.field(name).name for name in columns] == tree["column_names"]
        )
        found = cls(flag, text, text, columns, is_column=is_column)
        empty = pa.table({name: pa.array([], schema.field(name).type) for name in columns})
        found.evaluate(empty)  # what DuckDB refuses, it shall refuse in the user's words
        try:
            found = dataclasses.replace(found, sql=with_float_rules(text, tree, functools.partial(_types_of, empty)))
        except RecursionError:
            raise too_deep(flag, text) from None
        kind = found.evaluate(empty).type
        if flag == "--where" and not pa.types.is_boolean(kind):
            raise ExpressionError(f"{flag} {text!r} is of the type {kind}, but it must be true or false for each row")
        return found if flag == "--where" else dataclasses.replace(found, rank=_rank(f"{flag} {text!r}", kind))

    def evaluate(self, table: pa.Table, failure: str = "") -> pa.Array:
        """Evaluate the expression on the rows of a table, in their order.

        Args:
            table: a table with its `columns`.
            failure: what the message says of a failure.
        Returns:
            A value for each row; bool for `--where`.
        Raises:
            ExpressionError: if DuckDB cannot evaluate it, for example since a text of a row is no number.
        """
        if self.is_column:
            column = _readable(table.column(self.columns[0])).combine_chunks()
            return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        try:
            with _rows_of(table.select(self.columns)) as connection:
                found = connection.sql(f"SELECT (\n{self.sql}\n) AS value FROM rows").to_arrow_table()
        except duckdb.Error as error:
            raise ExpressionError(f"{self.flag} {self.text!r}{failure}: {said(error)}") from None
        return found.column("value").combine_chunks()


@contextlib.contextmanager
def _rows_of(table: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """Let a connection see the rows of a table as `rows`."""
    connection = open_connection()
    try:
        # A table without columns has no rows, but `1 = 1` is an expression too.
        rows = _as_structs(table) if table.column_names else pa.table({"_row": pa.nulls(table.num_rows, pa.int8())})
        connection.register("rows", rows)
        yield connection
    finally:
        connection.unregister("rows")


def _types_of(table: pa.Table, trees: Sequence[Any]) -> list[str]:
    """Return the types in DuckDB of some expressions over a table."""
    if not trees:
        return []
    with _rows_of(table) as connection:
        return [str(kind) for kind in connection.sql(f"SELECT {to_sql(trees)} FROM rows").types]


def _rank(expression: str, kind: pa.DataType) -> str:
    """Return the NumPy type in which values are ranked: one that keeps their order and makes no two of them equal.

    Raises:
        ExpressionError: if they are no numbers, or no such type has room for them.
    """
    if pa.types.is_floating(kind):
        return "float64" if pa.types.is_float64(kind) else "float32"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "uint64" if pa.types.is_uint64(kind) else "int64"
    if not pa.types.is_decimal(kind):
        hint = "; epoch_us(…) makes one of a time" if pa.types.is_temporal(kind) else ""
        raise ExpressionError(f"{expression} is of the type {kind}, but it must be a number for each row{hint}")
    if kind.precision > _DIGITS:
        raise ExpressionError(
            f"{expression} is of the type {kind}, which has too many digits to be ranked exactly; write "
            "(…)::BIGINT for whole numbers, or (…)::DOUBLE to round them"
        )
    return "float64"


def _as_structs(table: pa.Table) -> pa.Table:
    """Return the columns as DuckDB shall see them: a struct for each taxonomy besides, and null for NaN."""
    plain = pa.table({name: _readable(table.column(name)) for name in table.column_names})
    taxonomies: dict[str, dict[str, str]] = {}  # taxonomy → name of its column → name of its field
    for name in plain.column_names:
        if taxonomy := taxonomy_of(name):
            taxonomies.setdefault(taxonomy, {})[name] = name.rpartition(".")[2]
    # Labels stand there twice, since a column of the user's may be called `a.label`.
    for taxonomy, fields in taxonomies.items():
        labels = plain.select(list(fields))
        kind = pa.struct([(fields[field.name], field.type) for field in labels.schema])
        structs = [pa.StructArray.from_arrays(batch.columns, fields=list(kind)) for batch in labels.to_batches()]
        plain = plain.append_column(taxonomy, pa.chunked_array(structs, kind))
    return plain


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without what DuckDB reads in another way: NaN and float16."""
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_floating(column.type):
        nan = pc.is_nan(column)
        return pc.if_else(nan, pa.scalar(None, column.type), column) if pc.any(nan).as_py() else column
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_float16(column.type.value_type):
        return column.cast(pa.list_(pa.float32(), column.type.list_size))
    return column


def names_of(expressions: Iterable[Expression | None]) -> Sequence[str]:
    """Return the columns that some expressions read, sorted."""
    return sorted({name for expression in expressions if expression for name in expression.columns})
