"""The command line that finds what a page shows."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence

from clip_transforms.browsing.loaded import Loaded
from clip_transforms.browsing.question import Question


def command_for(loaded: Loaded, question: Question) -> str:
    """Return the command that finds the rows of a question.

    Args:
        loaded: the dataset.
        question: what is asked for.
    """
    plan = loaded.plan
    words = ["python", "-m", f"pipelines.{'search' if question.searches else 'filter'}", "--input", plan.given]
    if question.searches:
        words += _query(loaded, question)
        words += ["--against", plan.searched.against] if plan.index is None and _needs_against(loaded) else []
        words += ["--top_k", str(question.first + question.rows)]
        words += ["--index", plan.index.uri] if plan.index else []
    condition = question.condition or ("" if question.searches else "true")
    if not question.searches:
        words += ["--output", _folder_for(condition, plan.selection.places)]
    words += ["--selection", *plan.selection.places] if plan.selection.places else []
    words += _flag("--where", condition) if condition else []
    return " ".join(map(_quoted, words))


def _folder_for(condition: str, selections: Sequence[str]) -> str:
    """Name the folder of a selection by what it keeps, since a folder that another command made is not replaced."""
    return f"kept-{hashlib.sha256(json.dumps([condition, *selections]).encode()).hexdigest()[:6]}"


def _needs_against(loaded: Loaded) -> bool:
    """Whether a search would compare something else without the flag."""
    default = "image" if loaded.plan.dataset.counts.get("image.embedded") else "caption"
    return loaded.plan.searched.against != default


def _query(loaded: Loaded, question: Question) -> list[str]:
    if question.like is not None:
        return _flag("--like", sample_name(loaded, question.like))
    # A browser tells the name of a file, and never its folder.
    picture = f"PATH/{question.picture}" if question.picture else "FILE"
    return _flag("--text", question.text) if question.text else _flag("--image", picture)


def _quoted(word: str) -> str:
    """Quote a word for a shell. Texts of SQL are in single quotes, which would each take five characters."""
    plain = "'" in word and not set(word) & set('"$`\\!')
    return f'"{word}"' if plain else shlex.quote(word)


def _flag(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def sample_name(loaded: Loaded, place: int) -> str:
    """Return a name by which commands find a sample: its key, or `SHARD#ROW` if others have this key too."""
    (row,) = loaded.rows([place])
    return row["key"] if loaded.samples_with_key(row["key"]) == 1 else f"{loaded.shard_of(place)}#{row['row']}"
