"""The map of a report: its points, coloured by labels, and the pictures of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms.pages import projection, thumbnails
from clip_transforms.pages.counting import Counts, of_kind
from clip_transforms.pages.rendering import cut, share

_COLOURINGS = 3  # taxonomies that a map can be coloured by
_COLUMNS = 20  # pictures in a row of the sheet
_CAPTION = 80  # bytes of a caption
_COUNTED = {"image": "side", "caption": "tokens"}  # modality → the kind of counts in which each of its rows is once


def map_section(
    rows: Sequence[Mapping[str, Any]], ranked: Mapping[str, Sequence[str]], modality: str, counts: Counts
) -> dict[str, Any]:
    """Return the map.

    Args:
        rows: what was found out about the rows; those with a `rank` are points.
        ranked: taxonomy → its classes, the most frequent first.
        modality: whose embeddings the points are, `image` or `caption`.
        counts: counts of all rows.
    """
    points = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])[: projection.POINTS]
    if not points:
        return {"points": 0}
    places, explained = projection.project(np.stack([row["vector"] for row in points]))
    pictured = [place for place, row in enumerate(points) if row["small"]][: projection.PICTURES]
    return {
        "points": len(points),
        "of": sum(of_kind(counts, _COUNTED[modality]).values()),
        "modality": modality,
        "explained": share(explained, 1),
        "size": (projection.WIDTH, projection.HEIGHT),
        "colourings": _colourings(points, places, ranked),
        "pictured": _pictured(points, places, pictured, list(ranked)) if pictured else None,
    }


def _colourings(
    points: Sequence[Mapping[str, Any]], places: np.ndarray, ranked: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the layers for some taxonomies; the one whose labels lie farthest apart comes first."""
    labels = {taxonomy: [row[f"{taxonomy}.label"] for row in points] for taxonomy in ranked}
    apart = {taxonomy: projection.told_apart(places, labels[taxonomy]) for taxonomy in ranked}
    best = sorted(ranked, key=lambda taxonomy: (-apart[taxonomy], taxonomy))[:_COLOURINGS]
    if not best:
        return [{"name": "", "layers": projection.layers(places, [None] * len(points), [])}]
    return [
        {"name": taxonomy, "layers": projection.layers(places, labels[taxonomy], ranked[taxonomy])} for taxonomy in best
    ]


def _pictured(
    points: Sequence[Mapping[str, Any]], places: np.ndarray, which: Sequence[int], taxonomies: Sequence[str]
) -> dict[str, Any]:
    """Return the points of the map that have pictures: one sheet for all, and what is known of each."""
    rows = [points[place] for place in which]
    labels = [[row[f"{taxonomy}.label"] or "" for taxonomy in taxonomies] for row in rows]
    return {
        "number": len(which),
        "sheet": thumbnails.sheet([row["small"] for row in rows], _COLUMNS),
        "path": projection.dots(places[list(which)]),
        "data": {
            "columns": _COLUMNS,
            "rows": -(-len(which) // _COLUMNS),
            "places": places[list(which)].tolist(),
            "captions": [cut(row["caption"] or row["key"], _CAPTION) for row in rows],
            "labels": [cut(" · ".join(filter(None, names)), _CAPTION) for names in labels],
        },
    }
