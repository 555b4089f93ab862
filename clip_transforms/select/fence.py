"""The fence around SQL expressions: what a text may hold, and the connection that can reach nothing.

DuckDB's parser says what a text is, a list of kinds of nodes what it may hold, and the connection has no access to
files, the network, extensions or Python's variables. That of `query_files` can reach the parts that it reads.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from schemas.labels import LABEL_COLUMNS

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "error_on_division_by_zero": "false",  # x / 0 is null; see select/floats.py for floats
    "ieee_floating_point_ops": "true",  # the root of a negative number is NaN, and no error
    "threads": "1",
    "temp_directory": "",  # otherwise DuckDB may write to .tmp, whatever is forbidden
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
_QUOTED = re.compile("'[^']*'")
_CLAUSES = ("where_clause", "group_expressions", "having", "sample", "qualify", "modifiers")
_local = threading.local()
_lock = threading.Lock()
_databases: dict[tuple[int, tuple[str, ...]], duckdb.DuckDBPyConnection] = {}  # by process: not a fork's parent's


class ExpressionError(ValueError):
    """An expression that cannot be used, in one sentence."""


def open_connection() -> duckdb.DuckDBPyConnection:
    """Return the connection of this thread, made at its first use; it can reach nothing outside itself."""
    if not hasattr(_local, "connection"):
        _local.connection = _connect()
    return _local.connection


def _connect(folders: Sequence[str] = ()) -> duckdb.DuckDBPyConnection:
    """Connect to a new database, which takes 30 ms; it can reach files below the folders and nothing else."""
    started = {name: value for name, value in _SETTINGS.items() if name != "enable_external_access"}
    connection = duckdb.connect(":memory:", config=started if folders else _SETTINGS)
    if folders:
        connection.execute("SET enable_external_file_cache = false")
        connection.execute(f"SET allowed_directories = {texts(f'{folder}/' for folder in folders)}")
        connection.execute("SET enable_external_access = false")
    connection.execute("SET TimeZone = 'UTC'")  # not the worker's; it is no option of `connect`
    connection.execute("SET lock_configuration = true")
    return connection


def texts(values: Iterable[str]) -> str:
    """Return a list of texts in SQL."""
    return "[" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]"


def query_files(sql: str, folders: Sequence[str]) -> pa.Table:
    """Return the rows of a query over files.

    Args:
        sql: one SELECT, with an expression that `Expression.of` has checked.
        folders: paths of the folders that it may read.
    Raises:
        duckdb.Error: if it fails, or is something else than one SELECT.
    """
    key = (os.getpid(), tuple(folders))
    with _lock:
        if key not in _databases:
            _databases.clear()
            _databases[key] = _connect(folders)
        cursor = _databases[key].cursor()
    with cursor:
        statements = cursor.extract_statements(sql)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise duckdb.InvalidInputException("the query is no single SELECT")
        return cursor.sql(sql).to_arrow_table()


def too_deep(flag: str, text: str) -> ExpressionError:
    """Return the error of an expression that is nested too deeply."""
    shown = repr(text if len(text) < 200 else f"{text[:100]} … {text[-50:]}")
    return ExpressionError(f"{flag} {shown} is nested too deeply; write it with fewer brackets")


def said(error: Exception) -> str:
    """Return DuckDB's reason in one line."""
    return " ".join(str(error).split("\n\nLINE")[0].split())


def _tree(sql: str) -> Any:
    return json.loads(open_connection().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])


def parse(flag: str, text: str) -> Any:
    """Parse a text as one expression; DuckDB's tree of it."""
    if not text.strip():
        raise ExpressionError(f"{flag} is empty; give an expression over the columns, such as 'clip_score >= 0.28'")
    try:
        text.encode()
        found = _tree(f"SELECT (\n{text}\n)")
    except UnicodeEncodeError:
        raise ExpressionError(f"{flag} {text!r} is not UTF-8; write it in UTF-8") from None
    except RecursionError:
        raise too_deep(flag, text) from None
    if found["error"] and found["error_type"] == "parser":
        bare = _tree(f"SELECT {text}")
        reason = (bare if bare["error"] else found).get(
            "error_message", ""
        )  # without our brackets, if it fails without
        if ";" in _QUOTED.sub("", text):
            raise ExpressionError(f"{flag} {text!r} has a semicolon, but it is one condition and no statement; omit it")
        raise ExpressionError(f"{flag} {text!r} is not SQL: {' '.join(reason.split())}")
    node = {} if found["error"] or len(found["statements"]) != 1 else found["statements"][0]["node"]
    plain = node.get("type") == "SELECT_NODE" and not any(node.get(clause) for clause in _CLAUSES)
    if not plain or node["cte_map"]["map"] or node["from_table"]["type"] != "EMPTY" or len(node["select_list"]) != 1:
        raise ExpressionError(f"{flag} {text!r} is not one expression; it must be one, over the columns of a row")
    if _closes_our_bracket(text, node):
        raise ExpressionError(f"{flag} {text!r} is not SQL: it closes a bracket that it did not open")
    return node["select_list"][0]


def _closes_our_bracket(text: str, node: Mapping[str, Any]) -> bool:
    """Return whether a text is an expression only in our brackets: `a) or (b` would mean another thing beside `and`."""
    return node["select_list"][0]["class"] != "SUBQUERY" and bool(_tree(f"SELECT {text}")["error"])


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
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


def check_apart(flag: str, tree: Any, known: Mapping[str, list[str]]) -> None:
    """Refuse columns that are one to SQL, which takes `Width` and `width` for the same name."""
    seen: dict[str, tuple[str, str]] = {}  # name in SQL → taxonomy, or column and none; and the column itself
    for column in (name for node in nodes(tree) for name in columns_of(node, known)):
        taxonomy = taxonomy_of(column)
        source = (taxonomy, "") if taxonomy else ("", column)
        other = seen.setdefault((taxonomy or column).lower(), source)
        if other != source:
            raise ExpressionError(
                f"{flag} names {''.join(other)} and {''.join(source)}, which SQL cannot tell apart; use one of them"
            )


def check_node(flag: str, text: str, node: Mapping[str, Any], known: Mapping[str, list[str]]) -> None:
    """Refuse what looks at anything but the row, or would not give the same tomorrow."""
    kind = node["class"]
    if kind not in _ALLOWED:
        raise ExpressionError(f"{flag} has {_NAMES.get(kind, kind.lower())}, but it may only use the columns of a row")
    if kind == "COLUMN_REF" and not columns_of(node, known):
        name = ".".join(node["column_names"])
        near = difflib.get_close_matches(name.lower(), known, 1, 0.5)
        there = [written for written, columns in known.items() if columns[0] == written or len(columns) > 1]
        hint = f"there are {', '.join(there)}; a text stands in single quotes, as '{name}'"
        if f'"{name}"' in text:
            hint = f"a text stands in single quotes, as '{name}', and double quotes are for names of columns"
        elif near:
            hint = f"did you mean {near[0]}?"
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
    below = list(nodes(tree))
    named = [node["column_names"][0] for node in below if node["class"] == "COLUMN_REF"]
    called = [
        node["function_name"].lower() for node in below if node["class"] == "FUNCTION" and not node["is_operator"]
    ]
    plain = all(node["class"] in _ALLOWED for node in below)
    return plain and all(name in parameters for name in named) and all(name in known for name in called)


def taxonomy_of(name: str) -> str:
    """Return the taxonomy that a column of labels belongs to; empty for a column of the embeddings, dots or not."""
    taxonomy, dot, field = name.rpartition(".")
    return taxonomy if dot and field in LABEL_COLUMNS else ""


def known_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """Name, as it is and in lower case → names of the columns it stands for; a taxonomy stands for all of its."""
    known: dict[str, list[str]] = {}
    for name in schema.names:
        known.setdefault(name.lower(), [name])
        known[name] = [name]
    taxonomies: dict[str, list[str]] = {}
    for name in schema.names:
        if taxonomy := taxonomy_of(name):
            taxonomies.setdefault(taxonomy.lower(), []).append(name)
    return known | {name: of for name, of in taxonomies.items() if name not in known}


def columns_of(node: Mapping[str, Any], known: Mapping[str, list[str]]) -> list[str]:
    """Return the columns that a node names itself: the longest of its dotted names that is one."""
    names = node.get("column_names", ())
    for n in range(len(names), 0, -1):
        name = ".".join(names[:n])
        if found := known.get(name) or known.get(name.lower()):
            return found
    return []
