"""Brace patterns such as `{00000..00999}.tar` → the paths that they stand for, counted before any is written out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import braceexpand

from clip_transforms.shards.unit import PlanError

# Each path is looked up and held in memory. A million tars are ten billion samples.
MAX_PATHS = 1_000_000
_INT_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_CHAR_RANGE = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?$")


def expand_braces(pattern: str) -> list[str]:
    """Write out a brace pattern given to --input.

    Raises:
        PlanError: if its braces do not match, or it stands for more than MAX_PATHS paths.
    """
    try:
        count = count_paths(pattern)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"--input {pattern} is no brace pattern: {error}; write {{00000..00999}} or {{a,b}}") from None
    if count > MAX_PATHS:
        raise PlanError(
            f"--input {pattern} stands for {count:,} paths, but a brace pattern may stand for at most {MAX_PATHS:,}; "
            "give @file with a path a line, or a glob such as *.tar"
        )
    return list(braceexpand.braceexpand(pattern, escape=False))


def count_paths(pattern: str) -> int:
    """Return how many paths `braceexpand` would write out."""
    return math.prod(_count_group(group) for group in _top_level_groups(pattern))


def _top_level_groups(pattern: str) -> Iterator[str]:
    """Yield what stands between each pair of outermost braces."""
    depth = start = 0
    for place, character in enumerate(pattern):
        if character == "{":
            depth += 1
            start = place + 1 if depth == 1 else start
        elif character == "}":
            depth -= 1
            if depth == 0:
                yield pattern[start:place]
    if depth:
        raise ValueError(f"Unbalanced braces: {pattern!r}")


def _count_group(group: str) -> int:
    if match := _INT_RANGE.match(group):
        start, stop, step = (int(number or 0) for number in match.groups())
        return abs(stop - start) // (step or 1) + 1
    if _CHAR_RANGE.match(group):  # 52 at most
        return len(list(braceexpand.braceexpand(f"{{{group}}}", escape=False)))
    items = _split_at_commas(group)
    # Without a comma the braces are characters of the path like any other.
    return sum(map(count_paths, items)) if len(items) > 1 else count_paths(group)


def _split_at_commas(group: str) -> list[str]:
    depth, items = 0, [""]
    for character in group:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return items
