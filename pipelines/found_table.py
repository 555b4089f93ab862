"""The results of a search as text for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from clip_transforms.parts.shard_name import shard_name

_LONGEST = {"key": 40, "from": 40, "caption": 60, "labels": 60}  # characters of a cell


def found_lines(results: pa.Table, most: int, most_rows: int) -> Iterator[str]:
    """Yield the lines of a table for each query.

    Args:
        results: rows of `results.parquet`.
        most: the number of queries that are shown, the first ones.
        most_rows: the number of rows of each that are shown.
    """
    firsts = np.flatnonzero(results.column("rank").to_numpy() == 1)
    for first, stop in zip(firsts[:most], np.append(firsts, results.num_rows)[1:], strict=False):
        rows = results.slice(first, min(stop - first, most_rows)).to_pylist()
        yield _printable(rows[0]["query"])
        cells = [("", "similarity", "key", "from", "caption", "labels"), *map(_cells, rows)]
        widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
            yield "  ".join(padded).rstrip()
        if stop - first > most_rows:
            yield f"   … and {stop - first - most_rows:,} more"
        yield ""


def _cells(row: dict) -> tuple[str, ...]:
    place = f"{shard_name(row['shard'])}#{row['row']}"
    labels = ", ".join(f"{name}: {label['label']}" for name, label in row["labels"])
    texts = {"key": row["key"], "from": place, "caption": row["caption"] or "", "labels": labels}
    cut = (_cut(_printable(text), _LONGEST[name]) for name, text in texts.items())
    return (f"{row['rank']:>4}", f"{row['similarity']:.4f}", *cut)


def _printable(text: str) -> str:
    """Return a text without characters that control a terminal; a line break becomes a space."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
