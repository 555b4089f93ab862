"""Expand brace patterns such as `{00000..00999}.tar`. The paths are counted before they are written out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import braceexpand

from clip_transforms.shards.unit import PlanError

# Every path is held in memory and looked up. A million tars hold about ten billion samples.
MAX_PATHS = 1_000_000
_INT_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_CHAR_RANGE = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?$")


def expand_braces(pattern: str) -> list[str]:
    """Return the paths that a brace pattern of --input stands for.

    Raises:
        PlanError: if its braces do not match, or it stands for more than MAX_PATHS paths.
    """
    try:
        count = count_paths(pattern)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"--input {pattern} is not a brace pattern: {error}; write {{00000..00999}} or {{a,b}}"
        ) from None
    if count > MAX_PATHS:
        raise PlanError(
            f"--input {pattern} stands for {count:,} paths, but a brace pattern may stand for at most {MAX_PATHS:,}; "
            "give @file with a path a line, or a glob such as *.tar"
        )
    return list(braceexpand.braceexpand(pattern, escape=False))


def count_paths(pattern: str) -> int:
    """Return the number of paths that `braceexpand` would return."""
    return math.prod(_count_group(group) for group in _top_level_groups(pattern))


def _top_level_groups(pattern: str) -> Iterator[str]:
    """Yield the text inside each outermost pair of braces."""
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
    # Without a comma, the braces are ordinary characters of the path.
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
