"""The contact sheets of a report: the rows that were chosen, with what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clip_transforms.pages import choosing
from clip_transforms.pages.choosing import Chosen, Row
from clip_transforms.pages.counting import Counts
from clip_transforms.pages.looked import NOT_READ
from clip_transforms.pages.rendering import decimals
from clip_transforms.parts.shard_name import shard_name

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
        "place": f"{shard_name(shard)}, row {row}",
        "caption": caption,
        "alt": caption or f"picture {key}",
        "value": value,
        "image": found.get("image"),
        "lost": "" if lost in ("", NOT_READ) else WHY.get(lost, lost),
    }


def _cards(looked: Looked, rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [card(looked, one.shard, one.row, decimals(abs(one.rank), 3)) for one in rows]


def labels(chosen: Chosen, counts: Counts, looked: Looked, ranked: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the sheets of the surest and the least sure pictures of each label, a section for each taxonomy.

    No picture is in both.
    """
    sections = []
    for taxonomy, classes in choosing.shown_classes(ranked).items():
        rows = []
        for name in classes:
            ends = [chosen.get((kind, taxonomy, name), ()) for kind in (choosing.SUREST, choosing.LEAST_SURE)]
            surest, least = choosing.apart(*ends)
            rows.append(
                {
                    "name": name,
                    "pictures": counts["label", taxonomy, name],
                    "surest": _cards(looked, surest),
                    "least": _cards(looked, least),
                }
            )
        sections.append({"taxonomy": taxonomy, "classes": rows, "more": len(ranked[taxonomy]) - len(classes)})
    return sections


def pairs(chosen: Chosen, looked: Looked) -> dict[str, list[dict[str, Any]]]:
    """Return the sheets of the best and the worst pairs; no pair is in both."""
    best, worst = choosing.apart(*(chosen.get((kind,), ()) for kind in (choosing.BEST, choosing.WORST)))
    return {
        name: [card(looked, one.shard, one.row, decimals(sign * one.rank, 3)) for one in rows]
        for name, rows, sign in (("best", best, -1), ("worst", worst, 1))
    }


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
