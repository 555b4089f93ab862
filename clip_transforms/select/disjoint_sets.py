"""Connected components: numbers 0 to n - 1 that are joined pair by pair."""

from __future__ import annotations

import numpy as np


class DisjointSets:
    """Sets of numbers, each called by its smallest member. The order of joining does not matter."""

    def __init__(self, n: int):
        """Start with n sets of one number each."""
        self._parents = np.arange(n)

    def roots(self, numbers: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the smallest member of the set of each number, int64."""
        found = self._parents[numbers]
        while not np.array_equal(found, above := self._parents[found]):
            self._parents[numbers] = found = above  # the way up halves where all of it is among the numbers
        return found

    def grown(self, n: int) -> DisjointSets:
        """Return these sets with further numbers, up to n of them, each a set of its own."""
        more = DisjointSets(n)
        more._parents[: len(self._parents)] = self.roots()
        return more

    def shrunk(self, n: int) -> DisjointSets:
        """Return the sets of the first n numbers alone."""
        fewer = DisjointSets(n)
        fewer._parents = self.roots(slice(n))
        return fewer

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Join the set of each number of `a` with the set of the number of `b` in the same place."""
        one, other = self.roots(a), self.roots(b)
        while (different := one != other).any():
            one, other = one[different], other[different]
            np.minimum.at(self._parents, np.maximum(one, other), np.minimum(one, other))
            one, other = self.roots(one), self.roots(other)


def components(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the connected components of a graph.

    Args:
        a: one end of each edge, any int64 [e].
        b: the other end, int64 [e].
    Returns:
        The nodes, int64, sorted, each once; and the smallest node of the component of each.
    """
    nodes, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    sets = DisjointSets(len(nodes))
    sets.join(places[: len(a)], places[len(a) :])
    return nodes, nodes[sets.roots()]
