"""The data of a report, section by section, and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.pages import about, choosing, counting, map_section, scores, sheets
from clip_transforms.pages.choosing import Chosen
from clip_transforms.pages.counting import SIDES, SURE, Counts, of_kind
from clip_transforms.pages.facts import Facts
from clip_transforms.pages.looked import NOT_LOST
from clip_transforms.pages.rendering import counted_rows, render, share
from clip_transforms.parts.shard_name import shard_name
from schemas.rejects import REASONS

_LISTED, _FEWEST_LISTED, _ALL_LISTED = 30, 5, 120  # the most classes in a table, the fewest, and in all tables


def report_page(
    facts: Facts, counts: Counts, chosen: Chosen, rows: Sequence[Mapping[str, Any]], pictures: bool
) -> bytes:
    """Make the page.

    Args:
        facts: what the dataset says of itself.
        counts: sum of the counts of all parts.
        chosen: the rows that are shown.
        rows: what was found out about them, and about the rows on the map.
        pictures: whether the page has pictures.
    Returns:
        HTML, which depends on nothing but these.
    """
    looked = {(row["shard"], row["row"]): row for row in rows}
    ranked = {taxonomy: counting.most_frequent(counts, taxonomy) for taxonomy in facts.taxonomies}
    data = {
        "about": about.about(facts, counts["rows",]),
        "pictures": pictures,
        "turned": facts.exif_orientation == "apply",
        "lost": sum(1 for row in rows if row["shown"] and row["lost"] not in NOT_LOST),
        "sheets": sheets.labels(chosen, counts, looked, ranked),
        "pairs": sheets.pairs(chosen, looked),
        "scores": scores.scores(counts, facts.dataset, facts.selection),
        "labels": [labels_table(facts, counts, taxonomy, ranked[taxonomy]) for taxonomy in facts.taxonomies],
        "sure": SURE,
        "rejects": rejects(counts, chosen),
        "sizes": sizes(counts, facts.side),
        "captions": captions(counts),
        "duplicates": {"record": facts.duplicates, "groups": sheets.duplicates(chosen, looked)},
        "map": map_section.map_section(rows, ranked, facts.modality, counts),
        "time": about.time(facts),
        "provenance": about.provenance(facts),
    }
    return render("report.html", data, ["report.js"])


def labels_table(facts: Facts, counts: Counts, taxonomy: str, ranked: Sequence[str]) -> dict[str, Any]:
    """Return how often each class of a taxonomy was the label, and how often it was sure."""
    found, sure = of_kind(counts, "label", taxonomy), of_kind(counts, "sure", taxonomy)
    never = sorted(set(facts.classes[taxonomy]) - set(found))
    listed = min(_LISTED, max(_FEWEST_LISTED, _ALL_LISTED // len(facts.taxonomies)))
    return {
        "taxonomy": taxonomy,
        "pictures": sum(found.values()),
        "rows": [(name, n, bar, share(sure[name], n)) for name, n, bar in counted_rows(found, ranked[:listed])],
        "more": len(ranked[listed:]),
        "more_pictures": sum(found[name] for name in ranked[listed:]),
        "never": never[:listed],
        "never_more": len(never[listed:]),
    }


def rejects(counts: Counts, chosen: Chosen) -> list[dict[str, Any]]:
    """Return the rejects by reason, the most frequent first, with examples."""
    found = of_kind(counts, "reject")
    return [
        {
            "modality": modality,
            "stage": stage,
            "reason": reason,
            "meaning": REASONS.get((stage, reason), ""),
            "number": number,
            "examples": [
                {"key": row.more[0], "shard": shard_name(row.shard), "row": row.row, "message": row.more[1]}
                for row in chosen.get((choosing.REJECTED, modality, stage, reason), ())
            ],
        }
        for (modality, stage, reason), number in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]


def sizes(counts: Counts, side: int) -> dict[str, Any]:
    """Return how long the shorter sides of the pictures are, and how many the model sees enlarged."""
    found = of_kind(counts, "side")
    bounds = [bound for bound in SIDES if min(found, default=0) <= bound <= max(found, default=-1)]
    above = dict(zip(SIDES, SIDES[1:], strict=False))
    rows = [
        (f"{bound:,} to {above[bound] - 1:,}" if bound in above else f"{bound:,} and more", number, bar)
        for bound, number, bar in counted_rows(found, bounds)
    ]
    return {"rows": rows, "pictures": sum(found.values()), "side": side, "enlarged": counts["enlarged",]}


def captions(counts: Counts) -> dict[str, Any]:
    """Return how long the captions are, in tokens, and how many were cut."""
    found = of_kind(counts, "tokens")
    section: dict[str, Any] = {"captions": sum(found.values()), "truncated": counts["truncated",]}
    if not found:
        return section
    low, high = min(found), max(found)
    section["ends"] = (low, high)
    if low == high:  # nothing to draw
        return section
    return section | {
        "path": scores.path([found[tokens] for tokens in range(low, high + 1)]),
        "median": _median(found),
        "table": [(tokens, found[tokens]) for tokens in range(low, high + 1)],
    }


def _median(found: Counter) -> int:
    """Return the lower median of numbers that were counted."""
    left = (sum(found.values()) + 1) // 2
    for value in sorted(found):
        left -= found[value]
        if left <= 0:
            break
    return value
