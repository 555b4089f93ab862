"""The contact sheets of a report: the rows that were chosen, with what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clip_transforms.pages import choosing
from clip_transforms.pages.choosing import Chosen, Row
from clip_transforms.pages.counting import Counts
from clip_transforms.pages.looked import NOT_READ
from clip_transforms.pages.rendering import decimals

Looked = Mapping[tuple[str, int], Mapping[str, Any]]
# Why there is no picture, in a small box.
WHY = {
    "vanished": "source gone",
    "changed": "source changed",
    "unreadable": "source unreadable",
    "not allowed": "not allowed",
    "not fetched": "not fetched",
    "no picture": "no picture",
}


def card(looked: Looked, shard: str, row: int, value: str) -> dict[str, Any]:
    """Return what a page shows of a row.

    Args:
        looked: what was found out about the rows.
        shard: URI of the row's shard.
        row: its place there.
        value: what it is shown for, such as its score.
    """
    found = looked.get((shard, row), {})
    key, caption = found.get("key", ""), found.get("caption")
    lost = found.get("lost", "vanished")
    return {
        "key": key,
        "place": f"{shard.rpartition('/')[2] or shard}, row {row}",
        "caption": caption,
        "alt": caption or f"picture {key}",
        "value": value,
        "image": found.get("image"),
        "lost": "" if lost in ("", NOT_READ) else WHY.get(lost, lost),
    }


def _cards(looked: Looked, rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [card(looked, one.shard, one.row, decimals(abs(one.rank), 3)) for one in rows]


def labels(chosen: Chosen, counts: Counts, looked: Looked, ranked: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the sheets of the surest and the least sure pictures of each label, a section for each taxonomy."""
    sections = []
    for taxonomy, classes in choosing.shown_classes(ranked).items():
        rows = [
            {
                "name": name,
                "pictures": counts["label", taxonomy, name],
                "surest": _cards(looked, chosen.get((choosing.SUREST, taxonomy, name), ())),
                "least": _cards(looked, chosen.get((choosing.LEAST_SURE, taxonomy, name), ())),
            }
            for name in classes
        ]
        sections.append({"taxonomy": taxonomy, "classes": rows, "more": len(ranked[taxonomy]) - len(classes)})
    return sections


def pairs(chosen: Chosen, looked: Looked) -> dict[str, list[dict[str, Any]]]:
    """Return the sheets of the best and the worst pairs."""
    found = {}
    for name, kind in (("best", choosing.BEST), ("worst", choosing.WORST)):
        sign = -1 if kind == choosing.BEST else 1
        rows = chosen.get((kind,), ())
        found[name] = [card(looked, one.shard, one.row, decimals(sign * one.rank, 3)) for one in rows]
    return found


def duplicates(chosen: Chosen, looked: Looked) -> list[dict[str, Any]]:
    """Return the largest groups of duplicates; the row that stays comes first."""
    groups = []
    for group in chosen.get((choosing.DUPLICATES,), ()):
        size, members = group.more
        rows = []
        for shard, row, kept, similarity in members:
            rows.append(card(looked, shard, row, "stays" if kept else decimals(similarity, 3)))
        groups.append({"size": size, "rows": rows})
    return groups
