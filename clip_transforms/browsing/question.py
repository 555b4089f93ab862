"""What a page asks for, checked: nothing that a browser sends is believed."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_TEXT = 2_000  # characters of a query
_MOST_WHERE = 10_000
_MOST_ROWS = 200  # of a page
_LARGE = 1e6  # no score is so large, and whole numbers in JSON can be larger than any float


class QuestionError(ValueError):
    """A question that cannot be answered, in one sentence for the person at the page.

    Attributes:
        field: which field of the page it is about; empty for none.
    """

    def __init__(self, message: str, field: str = ""):
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class Question:
    """One page of rows that is asked for.

    Attributes:
        text: words to search for; empty for none.
        like: place of a row to search more of; None for none.
        vector: float32 [d] of a picture that was dropped; None for none.
        picture: the name of its file, for the command.
        labels: taxonomy → label that rows must have.
        score: the smallest and the largest `clip_score`; None for no bound.
        size: the shortest side of a picture in pixels, at least; 0 for any.
        where: a DuckDB expression; empty for none.
        first: how many rows come before this page.
        rows: how many rows it has at most.
    """

    text: str = ""
    like: int | None = None
    vector: np.ndarray | None = None
    picture: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    score: tuple[float | None, float | None] = (None, None)
    size: int = 0
    where: str = ""
    first: int = 0
    rows: int = 60

    @classmethod
    def of(cls, asked: Any, d: int, rows: int, taxonomies: Mapping[str, Any]) -> Question:
        """Check what a page sent.

        Args:
            asked: the JSON.
            d: number of values of an embedding.
            rows: number of rows of the dataset.
            taxonomies: those that there are.
        Raises:
            QuestionError: if it is no question.
        """
        if not isinstance(asked, dict):
            raise QuestionError("the question is no JSON object")
        text = _text(asked, "text", MOST_TEXT).strip()
        like = None if asked.get("like") is None else _whole(asked, "like", 0, rows - 1)
        vector = None if asked.get("vector") is None else _vector(asked["vector"], d)
        if sum((bool(text), like is not None, vector is not None)) > 1:
            raise QuestionError("the question has words and a picture; ask for one of them")
        labels = asked.get("labels") or {}
        if not isinstance(labels, dict) or not all(isinstance(of, str) for of in labels.values()):
            raise QuestionError("labels must be an object of taxonomies and labels", "labels")
        if unknown := [taxonomy for taxonomy in labels if taxonomy not in taxonomies]:
            raise QuestionError(f"the dataset has no labels of {unknown[0]!r:.60}", "labels")
        return cls(
            text=text,
            like=like,
            vector=vector,
            picture=_text(asked, "picture", 300),
            labels=tuple((taxonomy, label) for taxonomy, label in labels.items() if label),
            score=(_number(asked, "least"), _number(asked, "most")),
            size=_whole(asked, "size", 0, 1 << 30),
            where=_text(asked, "where", _MOST_WHERE).strip(),
            first=_whole(asked, "first", 0, rows),
            rows=_whole(asked, "rows", 1, _MOST_ROWS, 60),
        )

    @property
    def searches(self) -> bool:
        """Whether rows are sought that are near to something."""
        return bool(self.text) or self.like is not None or self.vector is not None

    @property
    def condition(self) -> str:
        """All conditions as one DuckDB expression, the very one that a command takes; empty for none."""
        conditions = [f"{_quoted(taxonomy)}.label = {_literal(label)}" for taxonomy, label in self.labels]
        least, most = self.score
        conditions += [f"clip_score >= {least!r}"] if least is not None else []
        conditions += [f"clip_score <= {most!r}"] if most is not None else []
        conditions += [f"least(width, height) >= {self.size}"] if self.size else []
        if self.where:
            # A comment to the end of the line would take the bracket along.
            conditions += [
                f"({self.where}\n)" if "--" in self.where else f"({self.where})" if conditions else self.where
            ]
        return " and ".join(conditions)


def _text(asked: Mapping[str, Any], name: str, most: int) -> str:
    value = asked.get(name) or ""
    if not isinstance(value, str):
        raise QuestionError(f"{name} must be a text", name)
    if len(value) > most:
        raise QuestionError(f"the text has {len(value):,} characters, but at most {most:,} are taken; shorten it", name)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise QuestionError("the text holds half a character (a lone surrogate); type it again", name)
    return value


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int, default: int = 0) -> int:
    value = asked.get(name)
    value = default if value is None or value == "" else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise QuestionError(f"{name} is {value!r:.40}, but it must be a whole number from {least:,} to {most:,}", name)
    return value


def _number(asked: Mapping[str, Any], name: str) -> float | None:
    value = asked.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -_LARGE <= value <= _LARGE:
        raise QuestionError(f"the score is {value!r:.40}, but it must be a number such as 0.28", name)
    return float(value)


def _vector(value: Any, d: int) -> np.ndarray:
    try:
        vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    except (ValueError, TypeError):
        vector = np.empty(0, np.float32)
    if vector.shape != (d,) or not np.isfinite(vector).all() or not 0.5 < float(np.linalg.norm(vector)) < 2:
        raise QuestionError("the picture's embedding is not of this dataset; drop the picture again", "picture")
    return vector


def _quoted(name: str) -> str:
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
