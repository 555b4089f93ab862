"""How sure a rate is, and how far the rates of groups lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

Z = 1.9599639845400536  # 95 % of a normal distribution lie within so many standard deviations


def wilson(hits: int, n: int) -> tuple[float, float] | None:
    """Return Wilson's interval at 95 % of a rate (Wilson 1927, "Probable inference").

    It is (p + z²/2n ± z · √(p(1 - p)/n + z²/4n²)) / (1 + z²/n) with p = hits / n and z = 1.96. It stays within [0, 1]
    and has a width at 0 and at n hits too, where the usual p ± 1.96 · √(p(1 - p)/n) has none.

    Args:
        hits: 0 to n.
        n: number of samples.
    Returns:
        The lower and the upper end, 0 to 1; None without samples.
    """
    if n == 0:
        return None
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the sum is 0 and 1 but for rounding.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def spread(rates: Iterable[float | None]) -> float | None:
    """Return the largest rate minus the smallest; None if fewer than two groups have one."""
    known = [rate for rate in rates if rate is not None]
    return max(known) - min(known) if len(known) > 1 else None
