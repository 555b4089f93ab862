"""CRC-32C, the checksum of TFRecord, in numpy: many stretches of the data at once, which are then joined."""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_STRETCH = 128  # bytes of the data that are done one after the other
_SHORT = 64  # bytes up to which a plain loop is quicker
_MASK = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of some bytes as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes; of b"123456789" it is 0xE3069283."""
    if len(data) <= _SHORT:
        crc, table = 0xFFFFFFFF, _byte_table()
        for byte in data:
            crc = int(table[(crc ^ byte) & 0xFF]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    lanes = -(-len(data) // _STRETCH)
    padded = np.zeros(lanes * _STRETCH, np.uint8)  # zeros before the data change nothing while the state is zero
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    begin = len(padded) - len(data)
    padded[begin : begin + 4] ^= 0xFF  # as beginning with a state of ones
    words = np.ascontiguousarray(padded.view("<u2").reshape(lanes, _STRETCH // 2).T)
    table, state = _word_table(), np.zeros(lanes, np.uint32)
    for column in words:
        state = table[(state ^ column) & 0xFFFF] ^ state >> np.uint32(16)
    stretch = _STRETCH
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _behind_zeros(stretch, state[0::2]) ^ state[1::2]
        stretch *= 2
    return int(state[0]) ^ 0xFFFFFFFF


@functools.lru_cache(maxsize=1)
def _byte_table() -> np.ndarray:
    """Return uint32 [256]: the state after one byte, for each value of the lowest byte."""
    state = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        state = np.where(state & 1, state >> 1 ^ np.uint32(_POLYNOMIAL), state >> 1)
    return state


@functools.lru_cache(maxsize=1)
def _word_table() -> np.ndarray:
    """Return uint32 [65536]: the state after two bytes, for each value of the lowest two."""
    table, state = _byte_table(), np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        state = table[state & 0xFF] ^ state >> np.uint32(8)
    return state


def _behind_zeros(count: int, states: np.ndarray) -> np.ndarray:
    """Return what becomes of some states by `count` bytes of zeros, a power of two; the map is linear."""
    tables = _zeros_tables(count)
    result = tables[0][states & 0xFF]
    for place in range(1, 4):
        result ^= tables[place][states >> np.uint32(8 * place) & 0xFF]
    return result


@functools.lru_cache(maxsize=64)
def _zeros_tables(count: int) -> np.ndarray:
    """Return uint32 [4, 256]: what `count` bytes of zeros make of each value of each of the four bytes of a state."""
    states = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    if count == 1:
        return _byte_table()[states & 0xFF] ^ states >> np.uint32(8)
    return _behind_zeros(count // 2, _behind_zeros(count // 2, states))
