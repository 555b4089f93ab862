"""Answer questions about a loaded dataset: which rows, in which order, and the command that finds the same."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from clip_transforms.browsing.commands import command_for
from clip_transforms.browsing.loaded import Loaded
from clip_transforms.browsing.question import Question, QuestionError
from clip_transforms.browsing.towers import Towers
from clip_transforms.parts.reader import DatasetError, read_table
from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import ExpressionError, open_connection, taxonomy_of
from clip_transforms.select.filtering import columns_of
from clip_transforms.workers.watching import watching
from schemas.embeddings import EMBEDDINGS

FOUND_ROWS = 2_000  # the nearest rows of a query that can be paged through
_FIRST_ROWS = 240  # that are sought for the first pages: fewer are found sooner
_MASKS, _SEARCHES = 8, 32  # that are kept: n bytes each, and 24 kB each
_SECONDS = 20.0  # a condition may take, over all rows
_ROWS_AT_ONCE = 200_000  # rows whose columns are read from Parquet for a condition
_CAPTION = 400  # characters of a caption beside its picture
Value = TypeVar("Value")


class Answers:
    """Answers questions, and keeps the last conditions and searches, so that the next page costs nothing."""

    def __init__(self, loaded: Loaded, towers: Towers):
        """Answer questions about a dataset."""
        self._loaded, self._towers = loaded, towers
        self._schema = columns_of(loaded.plan.dataset)
        self._masks: collections.OrderedDict[Hashable, np.ndarray] = collections.OrderedDict()
        self._searches: collections.OrderedDict[Hashable, tuple[np.ndarray, np.ndarray]] = collections.OrderedDict()

    def answer(self, question: Question) -> dict[str, Any]:
        """Return a page of rows, as JSON values.

        Raises:
            QuestionError: in a sentence for the person at the page.
        """
        loaded, notes = self._loaded, []
        allowed = _kept(self._masks, question.condition, _MASKS, lambda: self._allowed(question))
        if not question.searches:
            places = _kept(self._searches, ("all", question.condition), 2, lambda: self._in_order(allowed))[0]
            total = shown = len(places)
            similarities = None
        else:
            query, name, cut = self._query(question)
            notes += ["The text is longer than the model reads; only its beginning counts."] if cut else []
            total = int(np.count_nonzero(allowed & loaded.vectors.there))
            sought = _FIRST_ROWS if question.first + question.rows <= _FIRST_ROWS else FOUND_ROWS
            places, similarities = _kept(
                self._searches,
                (name, question.condition, sought),
                _SEARCHES,
                lambda: loaded.vectors.find(query, allowed & loaded.vectors.there, sought),
            )
            shown = len(places) if len(places) < sought else min(total, FOUND_ROWS)
        page = slice(question.first, question.first + question.rows)
        rows = [_card(place, row) for place, row in zip(places[page].tolist(), loaded.rows(places[page]), strict=True)]
        if similarities is not None:
            for row, similarity in zip(rows, similarities[page].tolist(), strict=True):
                row["similarity"] = round(similarity, 4)
        return {
            "rows": rows,
            "total": total,
            "shown": shown,
            "notes": notes,
            "command": command_for(loaded, question),
        }

    def _in_order(self, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = self._loaded.order
        return order[allowed[order]], np.empty(0, np.float32)

    def _query(self, question: Question) -> tuple[np.ndarray, Hashable, bool]:
        """Return the vector that is compared, by what it is remembered, and whether its text was cut."""
        columns, cut = len(self._loaded.plan.searched.columns), False
        if question.like is not None:
            if not self._loaded.vectors.there[question.like]:
                raise QuestionError("this sample has no embedding to compare; take another one", "like")
            vector = self._loaded.vectors.vector(question.like)
            return vector / np.float32(columns), question.like, False
        if question.text:
            one, cut = self._towers.of_text(question.text)
            name: Hashable = question.text
        else:
            assert question.vector is not None
            one, name = question.vector, question.vector.tobytes()
        return np.tile(one, columns) / np.float32(columns), name, cut

    def _allowed(self, question: Question) -> np.ndarray:
        """Return which rows a question's conditions allow, bool [n]."""
        loaded = self._loaded
        if not question.condition:
            return loaded.chosen
        try:
            with _in_time():
                if question.where:  # alone, so that its brackets and comments do not reach beyond it
                    Expression.of("--where", question.where, self._schema)
                expression = Expression.of("--where", question.condition, self._schema)
                truths = [expression.evaluate(table) for table in self._tables(expression)]
        except (ExpressionError, DatasetError, duckdb.InterruptException) as error:
            raise QuestionError(_in_words(str(error)), "where") from error
        truth = pa.chunked_array(truths, pa.bool_()).fill_null(False)
        return loaded.chosen & truth.to_numpy(zero_copy_only=False)

    def _tables(self, expression: Expression) -> Iterator[pa.Table]:
        """Yield the columns that an expression reads, of all rows: at once if they are in memory, else part by part."""
        loaded, names = self._loaded, list(expression.columns)
        if set(names) <= set(loaded.table.column_names):
            yield loaded.table.select(names or ["row"])
            return
        plan, deadline = loaded.plan, time.monotonic() + _SECONDS
        most = 1 if set(names) & set(EMBEDDINGS) else _ROWS_AT_ONCE
        taxonomies = sorted({taxonomy_of(name) for name in names} & set(plan.dataset.taxonomies))
        waiting: list[pa.Table] = []
        for part in loaded.parts:
            if time.monotonic() > deadline:
                raise ExpressionError("INTERRUPT")
            made_from = {"embeddings": plan.dataset.digests[part]}
            waiting.append(read_table(plan.dataset.uri, part, names, taxonomies, made_from=made_from))
            if sum(map(len, waiting)) >= most:
                yield pa.concat_tables(waiting).unify_dictionaries()
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting).unify_dictionaries()


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """End what DuckDB does in this thread if it takes too long."""
    connection = open_connection()

    def watch(done: threading.Event) -> None:
        if not done.wait(_SECONDS):
            while not done.wait(0.05):  # between two statements there is nothing to interrupt
                connection.interrupt()

    with watching(watch, "no condition without end"):
        yield


def _kept(
    kept: collections.OrderedDict[Hashable, Value], name: Hashable, most: int, make: Callable[[], Value]
) -> Value:
    """Return what is kept under a name, made if it is not there; of others the last ones stay."""
    value = kept.pop(name) if name in kept else make()
    kept[name] = value
    while len(kept) > most:
        kept.popitem(last=False)
    return value


def _card(place: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return what a page shows of a row beside its picture."""
    caption = row["caption"] or ""
    labels = [[name.removesuffix(".label"), value] for name, value in row.items() if name.endswith(".label") and value]
    return {
        "id": place,
        "key": row["key"],
        "caption": caption if len(caption) <= _CAPTION else f"{caption[:_CAPTION]}…",
        "labels": labels,
        "score": None if row["clip_score"] is None else round(row["clip_score"], 4),
        "picture": row["width"] is not None and row["image_sha256"] is not None,
        "size": [row["width"], row["height"]],
    }


def _in_words(message: str) -> str:
    """Return a message of the command line as the page says it."""
    if "INTERRUPT" in message:
        return f"the condition takes more than {_SECONDS:.0f} seconds over all rows; give a simpler one"
    return message.replace("--where", "the condition", 1)
