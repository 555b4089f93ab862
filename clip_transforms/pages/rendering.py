"""Render a page from a template: one file that loads nothing, whatever the texts in it say."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_FOLDER = Path(__file__).parent / "templates"
_CUT = 140  # bytes of a caption in a page, escaped
# What stands for a character in a page; a caption of quotation marks grows fivefold.
_ESCAPED = {"&": 5, "<": 4, ">": 4, '"': 5, "'": 5}
_SPACE = "\N{NO-BREAK SPACE}"


def render(template: str, data: Mapping[str, Any], scripts: Sequence[str] = ()) -> bytes:
    """Render a page.

    The page's own policy forbids every load from elsewhere and every script but those named here, so a text that
    escaped from its place could still do nothing.

    Args:
        template: name of a file in `templates/`; it extends `base.html`.
        data: its variables. Every text is escaped unless it is Markup.
        scripts: names of files in `templates/` that the page may run.
    Returns:
        The page, in UTF-8.
    """
    texts = [(_FOLDER / name).read_text(encoding="utf-8") for name in scripts]
    policy = " ".join(f"'sha256-{_digest(text)}'" for text in texts) or "'none'"
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    page = _environment().get_template(template).render(data, scripts=texts, script_policy=policy, style=style)
    return page.encode("utf-8", "replace")  # a lone surrogate cannot be written


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # an extra

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share, "decimals": decimals, "cut": cut, "base64": _base64}
    return environment


def number(value: int) -> str:
    """Return a whole number with commas."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """Return a part of a whole as `12.3 %`; an empty text if there is no whole."""
    return f"{part / whole:.1%}".replace("%", f"{_SPACE}%") if whole else ""


def decimals(value: float, places: int = 3) -> str:
    """Return a number with so many decimals."""
    return f"{round(value, places) + 0.0:.{places}f}"  # never -0.000


def cut(text: str, most: int = _CUT) -> str:
    """Return the beginning of a text: at most so many bytes once it is escaped, without line breaks."""
    text, size = " ".join(text.split()), 0
    for place, character in enumerate(text):
        size += _ESCAPED.get(character) or len(character.encode("utf-8", "replace"))
        if size > most:
            return f"{text[:place]}…"
    return text


def counted_rows(numbers: Mapping[Any, int], order: Sequence[Any]) -> Iterator[tuple[Any, int, float]]:
    """Yield name, number, and the number as a fraction of the largest, 0 to 1, for a table with bars."""
    largest = max((numbers.get(name, 0) for name in order), default=0) or 1
    for name in order:
        yield name, numbers.get(name, 0), numbers.get(name, 0) / largest


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
