"""A map of embeddings in two dimensions: the places of points, and the paths that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 1000, 640  # of the map's view box
POINTS, PICTURES = 3_000, 400  # the most points of a map, and of these with pictures
CLASSES = 8  # with a colour of their own
_MARGIN = 20


class Projection(NamedTuple):
    """Places of points.

    Attributes:
        places: int64 [m, 2], x and y in the view box.
        explained: part of the variance that the two axes hold, 0 to 1.
    """

    places: np.ndarray
    explained: float


def project(vectors: np.ndarray) -> Projection:
    """Project vectors by principal components.

    The sign of each component is fixed: its entry of the largest magnitude is positive.

    Args:
        vectors: float32 [m, d].
    """
    if not len(vectors):
        return Projection(np.zeros((0, 2), np.int64), 0.0)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances, components = np.linalg.eigh(centred.T @ centred)
    components = components[:, ::-1][:, :2]
    components = components * np.sign(components[np.abs(components).argmax(axis=0), range(components.shape[1])])
    points = centred @ components
    total = float(variances.sum())
    explained = float(variances[::-1][:2].sum()) / total if total > 0 else 0.0
    return Projection(_fitted(points), explained)


def _fitted(points: np.ndarray) -> np.ndarray:
    """Scale float64 [m, 1 or 2] to the view box; the second axis points up."""
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1]))) * [1, -1]
    room = np.array([WIDTH, HEIGHT]) - 2 * _MARGIN
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scaled = np.where(span > 1e-9, (points - low) / np.where(span > 1e-9, span, 1), 0.5)
    return np.rint(scaled * room + _MARGIN).astype(np.int64)


def layers(places: np.ndarray, labels: Sequence[str | None], order: Sequence[str]) -> list[tuple[str, int, str]]:
    """Draw the points of each class as one path.

    Args:
        places: int64 [m, 2].
        labels: class of each point, if it has one.
        order: the classes, the most frequent first; the first CLASSES have a layer of their own.
    Returns:
        Name (empty for all others, which come first), number of points, and path of each layer that has points.
    """
    own = list(order[:CLASSES])
    numbers = np.array([own.index(label) + 1 if label in own else 0 for label in labels], np.int64)
    found = []
    for number, name in enumerate(["", *own]):
        of_class = places[numbers == number]
        if len(of_class):
            found.append((name, len(of_class), dots(of_class)))
    return found


def told_apart(places: np.ndarray, labels: Sequence[str | None]) -> float:
    """Return how well the places tell labels apart: the part of their variance that lies between labels, 0 to 1."""
    known = np.array([label is not None for label in labels], bool)
    points = places[known].astype(np.float64)
    if not len(points) or not points.var(axis=0).sum():
        return 0.0
    groups = np.unique([label for label in labels if label is not None], return_inverse=True)[1]
    sizes = np.bincount(groups)
    means = np.stack([np.bincount(groups, points[:, axis]) / sizes for axis in (0, 1)], axis=1)
    between = (sizes[:, None] * (means - points.mean(axis=0)) ** 2).sum() / len(points)
    return float(between / points.var(axis=0).sum())


def dots(places: np.ndarray) -> str:
    """Return a path of points without length, which a round line cap draws as dots."""
    return "".join(f"M{x} {y}h0" for x, y in places.tolist())
