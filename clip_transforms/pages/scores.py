"""The scores of a report: a histogram, what a threshold keeps, and the command that keeps it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.pages.counting import Counts, of_kind
from clip_transforms.pages.rendering import number, share

WIDTH, HEIGHT = 1000, 240  # of the view box of a histogram
_BARS = 50
_STEPS = (1, 2, 5, 10, 20, 50, 100)  # thousandths; widths of a bar
_KEPT = (0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01)
_FIRST = 0.5  # what the slider keeps at first


def scores(counts: Counts, dataset: str, selection: Sequence[str]) -> dict[str, Any]:
    """Return the section of scores; without `bars` if no row has one.

    Args:
        counts: counts of the rows.
        dataset: URI of the dataset, for the command.
        selection: URIs of the selections that the rows are of, for the command.
    """
    found = of_kind(counts, "score")
    section: dict[str, Any] = {"rows": counts["rows",], "without": counts["no score",]}
    if not found:
        return section
    drawn = bars(found)
    low, high = drawn["ends"]
    kept = kept_from(found, low, high)
    cuts = [_cut_at(part, kept, low, section["rows"]) for part in _KEPT]
    first = next(cut for cut in cuts if cut["part"] == _FIRST)
    return section | {
        "with": sum(found.values()),
        "bars": drawn,
        "cuts": cuts,
        "first": first,
        "slider": {"low": low, "high": high, "rows": section["rows"], "kept": kept},
        "command": command(dataset, selection, first["threshold"]),
    }


def kept_from(found: Mapping[int, int], low: int, high: int) -> list[int]:
    """Return how many rows each threshold keeps, from `low` to `high` in thousandths."""
    kept, total = [], 0
    for thousandth in range(high, low - 1, -1):
        total += found.get(thousandth, 0)
        kept.append(total)
    return kept[::-1]


def _cut_at(part: float, kept: Sequence[int], low: int, rows: int) -> dict[str, Any]:
    """Return the largest threshold that keeps at least so large a part of the rows with a score."""
    place = max(place for place, number_ in enumerate(kept) if number_ >= part * kept[0])
    return {
        "part": part,
        "threshold": threshold(low + place),
        "thousandth": low + place,
        "kept": number(kept[place]),
        "share": share(kept[place], rows),
    }


def threshold(thousandth: int) -> str:
    """Return a threshold as it is written in SQL: `0.28`."""
    return f"{thousandth / 1000:.3f}"


def command(dataset: str, selection: Sequence[str], at: str) -> str:
    """Return the command that keeps the rows from a threshold on."""
    selected = ["--selection", *selection] if selection else []
    words = ["python", "-m", "pipelines.filter", "--input", dataset, *selected, "--output", "kept"]
    return shlex.join([*words, "--where", f"clip_score >= {at}"])


def bars(found: Mapping[int, int]) -> dict[str, Any]:
    """Draw a histogram of numbers in thousandths.

    Returns:
        `path` in a view box of WIDTH and HEIGHT; `ends`, the numbers at its left and right edge in thousandths;
        `table`, lower bound, upper bound and number of rows of each bar.
    """
    low, high = min(found), max(found)
    step = next(step for step in _STEPS if step == _STEPS[-1] or high // step - low // step < _BARS)
    counted: Counter = Counter()
    for thousandth, rows in found.items():
        counted[thousandth // step] += rows
    places = range(low // step, high // step + 1)
    values = [counted[place] for place in places]
    return {
        "path": path(values),
        "ends": (places[0] * step, (places[-1] + 1) * step),
        "table": [(threshold(place * step), threshold((place + 1) * step), counted[place]) for place in places],
        "most": max(values),
    }


def path(values: Sequence[int]) -> str:
    """Return a path of adjacent bars in a view box of WIDTH and HEIGHT; a bar that is not empty can be seen."""
    most, width = max(values) or 1, WIDTH / len(values)
    pieces = []
    for place, value in enumerate(values):
        if value:
            height, left, wide = max(2.0, HEIGHT * value / most), place * width + width * 0.06, width * 0.88
            pieces.append(f"M{left:.1f} {HEIGHT}v{-height:.1f}h{wide:.1f}v{height:.1f}z")
    return "".join(pieces)
