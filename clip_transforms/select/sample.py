"""Seeded samples by hash: the same rows on any runner, and a larger fraction contains every smaller one."""

from __future__ import annotations

import hashlib

import numpy as np


def hashes(shard: str, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return a random number for each row of a shard, which depends on nothing but the row and the seed.

    It is SplitMix64 (Steele, Lea and Flood 2014) at the row's place, begun at a SHA-256 of seed and shard.

    Args:
        shard: URI of the shard.
        rows: int64 [n], places in the shard.
        seed: another seed gives other numbers.
    Returns:
        uint64 [n].
    """
    start = int.from_bytes(hashlib.sha256(f"{seed}|{shard}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        state = np.uint64(start) + rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def sampled(shard: str, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Say which rows of a shard are in a sample.

    Args:
        shard: URI of the shard.
        rows: int64 [n], places in the shard.
        fraction: expected part of the rows, 0 to 1.
        seed: another seed gives another sample.
    Returns:
        bool [n].
    """
    return (hashes(shard, rows, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
