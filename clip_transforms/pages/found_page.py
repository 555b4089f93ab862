"""The results of a search as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clip_transforms.pages.rendering import decimals, render
from clip_transforms.pages.sheets import card

MOST_ROWS = 500  # rows of a page: 4 MB of pictures


def found_page(dataset: str, results: Iterable[Mapping[str, Any]], looked: Mapping, facts: Mapping[str, Any]) -> bytes:
    """Return the page.

    Args:
        dataset: URI of the dataset.
        results: the first rows of the results, as column → value.
        looked: (shard, row) → what was found out about it; see `sheets.card`.
        facts: `queries`, `results` and `compared` of the whole search, and `asked`, its conditions in words.
    """
    queries: list[dict[str, Any]] = []
    for row in results:
        if row["rank"] == 1 or not queries:
            queries.append({"name": row["query"], "cards": []})
        queries[-1]["cards"].append(_card(row, looked))
    shown = sum(len(query["cards"]) for query in queries)
    name = dataset.rstrip("/").rpartition("/")[2]
    return render("found.html", {"dataset": dataset, "name": name, "queries": queries, "shown": shown, "facts": facts})


def _card(row: Mapping[str, Any], looked: Mapping) -> dict[str, Any]:
    made = card(looked, row["shard"], row["row"], decimals(row["similarity"], 4))
    labels: Sequence[tuple[str, Mapping[str, Any]]] = row["labels"]
    return {**made, "labels": [f"{taxonomy}: {label['label']}" for taxonomy, label in labels]}
