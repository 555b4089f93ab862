"""SQL expressions over the rows of a part: checked on the launcher, evaluated by DuckDB, fenced in.

An expression sees the columns of one part and nothing else. DuckDB's parser says what it is, a list of kinds of nodes
what it may hold, and the connection has no access to files, the network, extensions or Python's variables.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.labels import labels_schema

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "error_on_division_by_zero": "false",  # x / 0 is null
    "ieee_floating_point_ops": "false",  # and neither infinite nor NaN
    "threads": "1",
}
# Kinds of nodes that look at nothing but the row. Not here: sub-selects, window functions, `*`, parameters.
_ALLOWED = {
    *("CONJUNCTION", "COMPARISON", "OPERATOR", "BETWEEN", "CONSTANT", "COLUMN_REF", "FUNCTION", "CASE", "CAST"),
    "TYPE",
}
_NAMES = {
    "SUBQUERY": "a sub-select",
    "WINDOW": "a window function",
    "STAR": "a *",
    "PARAMETER": "a parameter",
    "LAMBDA": "a lambda",
}
# DuckDB calls them consistent, but they tell the date, the version, or what DuckDB makes of other SQL.
_NOT_OF_THE_ROW = {"age", "version", "json_serialize_plan", "json_serialize_sql", "json_deserialize_sql"}
_LABELS = frozenset(labels_schema().names)
_COMPARING = {"COMPARISON", "BETWEEN"}
_CLAUSES = ("where_clause", "group_expressions", "having", "sample", "qualify", "modifiers")
_local = threading.local()


class ExpressionError(ValueError):
    """An expression that cannot be used, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Expression:
    """An expression that has been checked; `Expression.of` makes one. It is small and can be sent to workers.

    Attributes:
        flag: the flag that it came from, for messages.
        text: what the user wrote.
        sql: what DuckDB evaluates: the same, with literals beside float32 columns as float32.
        columns: names of the columns of embeddings and labels that it reads, as `read_table` knows them.
        is_float32: whether its values are float32.
        is_column: whether it is a column and nothing else, which DuckDB need not evaluate.
    """

    flag: str
    text: str
    sql: str
    columns: tuple[str, ...]
    is_float32: bool = False
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
        tree = _parse(flag, text)
        known = _known_columns(schema)
        for node in _nodes(tree):
            _check_node(flag, node, known)
        _check_apart(flag, tree, known)
        columns = tuple(sorted({name for node in _nodes(tree) for name in _columns_of(node, known)}))
        sql = _with_float32(text, tree, known, schema)
        is_column = (
            tree["class"] == "COLUMN_REF" and [schema.field(name).name for name in columns] == tree["column_names"]
        )
        found = cls(flag, text, sql, columns, is_column=is_column)
        empty = pa.table({name: pa.array([], schema.field(name).type) for name in columns})
        kind = found.evaluate(empty).type
        if flag == "--where" and not pa.types.is_boolean(kind):
            raise ExpressionError(f"{flag} {text!r} is of the type {kind}, but it must be true or false for each row")
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if flag != "--where" and not (is_number or pa.types.is_boolean(kind)):
            raise ExpressionError(f"{flag} {text!r} is of the type {kind}, but it must be a number for each row")
        return dataclasses.replace(found, is_float32=pa.types.is_float32(kind))

    def evaluate_each(self, tables: Sequence[pa.Table]) -> list[pa.Array]:
        """Evaluate the expression on the rows of some tables at once, which is faster than one after the other."""
        if self.is_column or not self.columns or len(tables) == 1:
            return [self.evaluate(table) for table in tables]
        values = self.evaluate(pa.concat_tables([table.select(self.columns) for table in tables]))
        starts = np.cumsum([0, *(table.num_rows for table in tables)])
        return [values.slice(start, table.num_rows) for start, table in zip(starts, tables, strict=False)]

    def evaluate(self, table: pa.Table) -> pa.Array:
        """Evaluate the expression on the rows of a table, in their order.

        Args:
            table: a table with its `columns`.
        Returns:
            A value for each row; bool for `--where`.
        Raises:
            ExpressionError: if DuckDB cannot evaluate it, for example since a text of a row is no number.
        """
        if self.is_column:
            return _readable(table.column(self.columns[0])).combine_chunks()
        columns = _as_structs(table.select(self.columns))
        # A table without columns has no rows, but `1 = 1` is an expression too.
        rows = pa.table(columns or {"_row": pa.nulls(table.num_rows, pa.int8())})
        connection = _connection()
        try:
            connection.register("rows", rows)
            value = connection.sql(f"SELECT (\n{self.sql}\n) AS value FROM rows").to_arrow_table().column("value")
        except duckdb.Error as error:
            raise ExpressionError(f"{self.flag} {self.text!r}: {_said(error)}") from None
        finally:
            connection.unregister("rows")
        return value.combine_chunks()


def _connection() -> duckdb.DuckDBPyConnection:
    """Return the connection of this thread, which can reach nothing outside itself."""
    if not hasattr(_local, "connection"):
        _local.connection = _connect()
    return _local.connection


def _connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=_SETTINGS)
    connection.execute("SET TimeZone = 'UTC'")  # not the worker's; it is no option of `connect`
    connection.execute("SET lock_configuration = true")
    return connection


def _short(text: str) -> str:
    return repr(text if len(text) < 200 else f"{text[:100]} … {text[-50:]}")


def _said(error: Exception) -> str:
    """Return DuckDB's reason in one line."""
    return " ".join(str(error).split("\n\nLINE")[0].split())


def _parse(flag: str, text: str) -> Any:
    """Parse a text as one expression; DuckDB's tree of it."""
    if not text.strip():
        raise ExpressionError(f"{flag} is empty; give an expression over the columns, such as 'clip_score >= 0.28'")
    try:
        text.encode()
        tree = _connection().execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{text}\n)"]).fetchall()[0][0]
        found = json.loads(tree)
    except UnicodeEncodeError:
        raise ExpressionError(f"{flag} {text!r} is not UTF-8; write it in UTF-8") from None
    except RecursionError:
        raise ExpressionError(f"{flag} {_short(text)} is nested too deeply; write it with fewer brackets") from None
    if found["error"] and found["error_type"] == "parser":
        bare = json.loads(_connection().execute("SELECT json_serialize_sql(?)", [f"SELECT {text}"]).fetchall()[0][0])
        said = (bare if bare["error"] else found).get("error_message", "")  # without our brackets, if it fails without
        raise ExpressionError(f"{flag} {text!r} is not SQL: {' '.join(said.split())}")
    node = {} if found["error"] or len(found["statements"]) != 1 else found["statements"][0]["node"]
    plain = node.get("type") == "SELECT_NODE" and not any(node.get(clause) for clause in _CLAUSES)
    if not plain or node["cte_map"]["map"] or node["from_table"]["type"] != "EMPTY" or len(node["select_list"]) != 1:
        raise ExpressionError(f"{flag} {text!r} is not one expression; it must be one, over the columns of a row")
    return node["select_list"][0]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the nodes of an expression, each before those below it."""
    left = [tree]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if "class" in one:
                yield one
            left += reversed(one.values())
        elif isinstance(one, list):
            left += reversed(one)


def _check_apart(flag: str, tree: Any, known: Mapping[str, list[str]]) -> None:
    """Refuse columns that are one to SQL, which takes `Width` and `width` for the same name."""
    seen: dict[str, tuple[str, str]] = {}  # name in SQL → taxonomy, or column and none; and the column itself
    for column in (name for node in _nodes(tree) for name in _columns_of(node, known)):
        taxonomy = _taxonomy_of(column)
        source = (taxonomy, "") if taxonomy else ("", column)
        other = seen.setdefault((taxonomy or column).lower(), source)
        if other != source:
            raise ExpressionError(
                f"{flag} names {''.join(other)} and {''.join(source)}, which SQL cannot tell apart; use one of them"
            )


def _check_node(flag: str, node: Mapping[str, Any], known: Mapping[str, list[str]]) -> None:
    """Refuse what looks at anything but the row, or would not give the same tomorrow."""
    kind = node["class"]
    if kind not in _ALLOWED:
        raise ExpressionError(f"{flag} has {_NAMES.get(kind, kind.lower())}, but it may only use the columns of a row")
    if kind == "COLUMN_REF" and not _columns_of(node, known):
        name = ".".join(node["column_names"])
        near = difflib.get_close_matches(name.lower(), known, 1, 0.5)
        there = [written for written, columns in known.items() if columns[0] == written or len(columns) > 1]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}"
        raise ExpressionError(f"{flag} names {name}, but the dataset has no such column; {hint}")
    if kind == "FUNCTION" and not node.get("is_operator") and node["function_name"].lower() not in _functions():
        raise ExpressionError(
            f"{flag} calls {node['function_name']}(), but it may only call functions that look at one row and always "
            "give the same"
        )


@functools.lru_cache(maxsize=1)
def _functions() -> frozenset[str]:
    """Names of DuckDB's functions of one row whose result depends on nothing else."""
    connection = _connect()
    rows = connection.execute(
        "SELECT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('scalar', 'macro') "
        "GROUP BY ALL HAVING bool_and(function_type = 'macro' OR stability = 'CONSISTENT') "
        "AND NOT bool_or(function_name LIKE 'pg\\_%' ESCAPE '\\' OR function_name LIKE 'current\\_%' ESCAPE '\\')"
    )
    known = {name for (name,) in rows.fetchall()} - _NOT_OF_THE_ROW
    macros = connection.execute(
        "SELECT lower(function_name), parameters, json_serialize_sql('SELECT ' || macro_definition) "
        "FROM duckdb_functions() WHERE function_type = 'macro'"
    ).fetchall()
    trees = [(name, parameters, json.loads(tree)) for name, parameters, tree in macros]
    while wrong := {name for name, given, tree in trees if name in known and not _is_of_one_row(given, tree, known)}:
        known -= wrong
    return frozenset(known)


def _is_of_one_row(parameters: Container[str], tree: Any, known: Container[str]) -> bool:
    """Return whether a macro is made of its parameters and known functions alone.

    Others sum up rows, make several of one, or tell the time.
    """
    nodes = list(_nodes(tree))
    named = [node["column_names"][0] for node in nodes if node["class"] == "COLUMN_REF"]
    called = [
        node["function_name"].lower() for node in nodes if node["class"] == "FUNCTION" and not node["is_operator"]
    ]
    plain = all(node["class"] in _ALLOWED for node in nodes)
    return plain and all(name in parameters for name in named) and all(name in known for name in called)


def _taxonomy_of(name: str) -> str:
    """Return the taxonomy that a column of labels belongs to; empty for a column of the embeddings, dots or not."""
    taxonomy, dot, field = name.rpartition(".")
    return taxonomy if dot and field in _LABELS else ""


def _known_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """Name, as it is and in lower case → names of the columns it stands for; a taxonomy stands for all of its."""
    known: dict[str, list[str]] = {}
    for name in schema.names:
        known.setdefault(name.lower(), [name])
        known[name] = [name]
    taxonomies: dict[str, list[str]] = {}
    for name in schema.names:
        if taxonomy := _taxonomy_of(name):
            taxonomies.setdefault(taxonomy.lower(), []).append(name)
    return known | {name: of for name, of in taxonomies.items() if name not in known}


def _columns_of(node: Mapping[str, Any], known: Mapping[str, list[str]]) -> list[str]:
    """Return the columns that a node names itself: the longest of its dotted names that is one."""
    names = node.get("column_names", ())
    for n in range(len(names), 0, -1):
        name = ".".join(names[:n])
        if found := known.get(name) or known.get(name.lower()):
            return found
    return []


def _with_float32(text: str, tree: Any, known: Mapping[str, list[str]], schema: pa.Schema) -> str:
    """Write the numbers that are compared with float32 columns alone as float32, as NumPy and DataComp read them.

    `clip_score >= 0.29` then keeps a stored 0.29, whose float32 is a little less than the 0.29 of a float64.
    """
    data, cuts = text.encode(), set()
    for node in _nodes(tree):
        if node["class"] in _COMPARING or node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
            below = list(_nodes(node))
            types = [schema.field(name).type for one in below for name in _columns_of(one, known)]
            if types and all(pa.types.is_float32(type_) for type_ in types):
                cuts |= {_place(one) for one in below if one.get("literal", {}).get("kind") == "NUMERIC"}
    for start, length in sorted(cuts, reverse=True):
        number = data[start : start + length]
        data = data[:start] + b"CAST('" + number + b"' AS FLOAT)" + data[start + length :]
    return data.decode()


def _place(node: Mapping[str, Any]) -> tuple[int, int]:
    """Return where a literal stands in the user's text, in bytes."""
    return node["query_location"] - len("SELECT (\n"), node["query_location_length"]


def _as_structs(table: pa.Table) -> dict[str, Any]:
    """Return the columns as DuckDB shall see them: a struct for each taxonomy, and null for NaN."""
    plain: dict[str, Any] = {}
    fields: dict[str, dict[str, pa.Array]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if taxonomy := _taxonomy_of(name):
            fields.setdefault(taxonomy, {})[name.rpartition(".")[2]] = _readable(column).combine_chunks()
        else:
            plain[name] = _readable(column)
    structs = {name: pa.StructArray.from_arrays(list(of.values()), list(of)) for name, of in fields.items()}
    return plain | structs


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without what DuckDB reads in another way: dictionaries, NaN, float16."""
    if pa.types.is_dictionary(column.type):
        return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_float16(column.type.value_type):
        return column.cast(pa.list_(pa.float32(), column.type.list_size))
    return column


def names_of(expressions: Iterable[Expression | None]) -> Sequence[str]:
    """Return the columns that some expressions read, sorted."""
    return sorted({name for expression in expressions if expression for name in expression.columns})
