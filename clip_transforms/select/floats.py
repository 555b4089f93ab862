"""What floats mean in an expression: a number beside float32 is float32, and NaN is null, as a quotient by zero is.

NumPy and DataComp read numbers so: `clip_score >= 0.29` keeps a stored 0.29, whose float32 is a little less than the
0.29 of a float64. DuckDB would compare as float64 in some places, and takes NaN for the largest number.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from clip_transforms.select.fence import nodes, open_connection

_COMPARING_OPERATORS = {"COMPARE_IN", "COMPARE_NOT_IN"}
_ASKING_OPERATORS = {"OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE"}
_ASKING_FUNCTIONS = {"greatest", "least"}  # NaN would be the largest
_ARITHMETIC = {"+", "-", "*", "/", "%"}
_NUMBERS = {"INTEGER", "NUMERIC"}
_MOST_NODES = 50_000  # that are written twice

Types = Callable[[Sequence[Any]], Sequence[str]]


def with_float_rules(text: str, tree: Any, types_of: Types) -> str:
    """Rewrite an expression so that its floats follow these rules.

    Args:
        text: the expression, which DuckDB can bind.
        tree: DuckDB's tree of it; it is changed.
        types_of: nodes → their types in DuckDB.
    Returns:
        SQL; the text itself if nothing had to change, so that DuckDB evaluates just what the user wrote.
    Raises:
        RecursionError: if it is nested too deeply.
    """
    changed = 0
    while found := _cast_numbers(tree, types_of):  # a cast may make float32 of what it is an operand of
        changed += found
    divisors = [one for node in nodes(tree) if (one := _divisor(node))]
    floats = _asked_floats(tree, types_of)
    # The inner ones first: they are written twice, and again with each that they are in.
    for operands, condition, place in ((floats, "isnan(0)", "expression"), (divisors, "0 = 0", "left")):
        for one in reversed(operands):
            changed += sum(1 for _ in nodes(one.node))
            if changed > _MOST_NODES:
                raise RecursionError
            one.make_null(condition, place)
    return to_sql([tree]) if changed else text


def to_sql(trees: Sequence[Any]) -> str:
    """Return the SQL of some expressions, with commas between them."""
    statement = _statement("SELECT 1")
    statement["statements"][0]["node"]["select_list"] = list(trees)
    ((sql,),) = open_connection().execute("SELECT json_deserialize_sql(?)", [json.dumps(statement)]).fetchall()
    return sql.removeprefix("SELECT ")


def _statement(sql: str) -> Any:
    return json.loads(open_connection().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])


@functools.lru_cache(maxsize=64)
def _parsed(sql: str) -> Any:
    return _statement(f"SELECT {sql}")["statements"][0]["node"]["select_list"][0]


class _Operand:
    """A node in its place below another, where it can be replaced."""

    def __init__(self, holder: Any, place: Any):
        self._holder, self._place = holder, place

    @property
    def node(self) -> Any:
        return self._holder[self._place]

    def is_number(self) -> bool:
        """Whether it is made of numbers alone: no column, and no cast, by which the user chose a type."""
        below = list(nodes(self.node))
        constants = [node["literal"] for node in below if node["class"] == "CONSTANT"]
        plain = all(node["class"] in ("CONSTANT", "FUNCTION") for node in below)
        return plain and bool(constants) and all(literal["kind"] in _NUMBERS for literal in constants)

    def make_float32(self) -> None:
        """Cast it; a single number from its text, so that it is rounded once."""
        node = self.node
        is_single = node["class"] == "CONSTANT"
        cast = copy.deepcopy(
            _parsed(f"CAST('{node['literal']['text']}' AS FLOAT)" if is_single else "CAST(0 AS FLOAT)")
        )
        self._holder[self._place] = cast if is_single else {**cast, "child": node}

    def make_null(self, condition: str, place: str) -> None:
        """Let it be null where a condition is true.

        Args:
            condition: SQL in which it stands for a 0.
            place: where this 0 is in the condition's tree.
        """
        case = copy.deepcopy(_parsed(f"CASE WHEN {condition} THEN NULL ELSE 0 END"))
        asked = case["case_checks"][0]["when_expr"]
        holder = asked if place in asked else asked["arguments"][0]
        holder[place] = case["else_expr"] = self.node
        self._holder[self._place] = case


def _operands(node: Any) -> list[_Operand]:
    """Return what a node compares, computes with or asks about."""
    if node["class"] == "FUNCTION":
        return [_Operand(argument, "expression") for argument in node["arguments"]]
    if "children" in node:
        return [_Operand(node["children"], place) for place in range(len(node["children"]))]
    return [_Operand(node, name) for name in ("left", "right", "input", "lower", "upper") if name in node]


def _compares(node: Any) -> bool:
    return node["class"] in ("COMPARISON", "BETWEEN") or node["type"] in _COMPARING_OPERATORS


def _calls(node: Any, functions: set[str]) -> bool:
    return node["class"] == "FUNCTION" and node["function_name"].lower() in functions


def _cast_numbers(tree: Any, types_of: Types) -> int:
    """Cast the numbers that are compared with float32 alone, and float64 ones in arithmetic with it; how many.

    DuckDB takes `2e0` for a float64. `2.0` is a decimal, which becomes float32 in arithmetic with one anyway.
    """
    places = [
        (_compares(node), *_parted(_operands(node)))
        for node in nodes(tree)
        if _compares(node) or _calls(node, _ARITHMETIC)
    ]
    types = iter(types_of([one.node for _, _, others in places for one in others]))
    found = 0
    for compares, numbers, others in places:
        if {next(types) for _ in others} == {"FLOAT"}:
            wanted = [one for one in numbers if compares or _is_float64(one.node)]
            for one in wanted:
                one.make_float32()
            found += len(wanted)
    return found


def _parted(operands: Sequence[_Operand]) -> tuple[list[_Operand], list[_Operand]]:
    """Return the operands that are numbers, and the others."""
    numbers = [one for one in operands if one.is_number()]
    return numbers, [one for one in operands if one not in numbers]


def _is_float64(node: Any) -> bool:
    return any("e" in one["literal"]["text"].lower() for one in nodes(node) if one["class"] == "CONSTANT")


def _asked_floats(tree: Any, types_of: Types) -> list[_Operand]:
    """Return the floats that are compared or asked about, and could be NaN.

    Columns hold none, and arithmetic with NaN gives NaN, so nothing else needs to look.
    """
    asking = [
        node
        for node in nodes(tree)
        if _compares(node) or node["type"] in _ASKING_OPERATORS or _calls(node, _ASKING_FUNCTIONS)
    ]
    operands = [one for node in asking for one in _operands(node) if not _holds_no_nan(one.node)]
    types = types_of([one.node for one in operands])
    return [one for one, kind in zip(operands, types, strict=True) if kind in ("FLOAT", "DOUBLE")]


def _holds_no_nan(node: Any) -> bool:
    is_cast_number = node["class"] == "CAST" and _is_finite(node["child"])
    return node["class"] in ("COLUMN_REF", "CONSTANT") or is_cast_number


def _is_finite(node: Any) -> bool:
    return node["class"] == "CONSTANT" and bool(set(node["literal"]["text"].lower()) <= set("0123456789.+-e_"))


def _divisor(node: Any) -> _Operand | None:
    """Return the divisor of a quotient; None if there is none, or it is a number other than 0."""
    if not _calls(node, {"/", "//"}) or len(node["arguments"]) != 2:
        return None
    divisor = _Operand(node["arguments"][1], "expression")
    is_other = _is_finite(divisor.node) and bool(set(divisor.node["literal"]["text"]) & set("123456789"))
    return None if is_other else divisor
