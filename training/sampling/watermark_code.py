"""The error-correcting code of the watermark's payload: 32 bits and a checksum, in a convolutional code.

The code has rate 1/2 and constraint length 7 (generators 171 and 133 octal, Odenwalder 1970), is decoded from soft
values by Viterbi's algorithm, and ends in state 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAYLOAD_BITS, CRC_BITS = 32, 16
_MEMORY = 6
_GENERATORS = (0o171, 0o133)
CODED_BITS = 2 * (PAYLOAD_BITS + CRC_BITS + _MEMORY)
"""Number of bits that the watermark carries."""

Floats = NDArray[np.float64]


def encode(payload: int) -> NDArray[np.int8]:
    """Return the coded bits `[CODED_BITS]` of a payload, as -1 and 1. Raises `ValueError` for more than 32 bits."""
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise ValueError(f"payload {payload} has more than {PAYLOAD_BITS} bits")
    word = payload << CRC_BITS | _crc(payload)
    bits = [word >> shift & 1 for shift in reversed(range(PAYLOAD_BITS + CRC_BITS))] + [0] * _MEMORY
    state, coded = 0, []
    for bit in bits:
        state = (state << 1 | bit) & (1 << _MEMORY + 1) - 1
        coded += [(state & generator).bit_count() % 2 for generator in _GENERATORS]
    return (2 * np.array(coded, np.int8) - 1).astype(np.int8)


def decode(soft: Floats) -> tuple[int, bool]:
    """Return the most likely payload of soft values `[CODED_BITS]`, above 0 for a 1, and whether its checksum holds."""
    states = np.arange(1 << _MEMORY)
    # A state holds the last six bits. It comes from two states, which differ in the bit that it no longer holds.
    before = np.stack([states >> 1, states >> 1 | 1 << _MEMORY - 1])
    registers = before << 1 | states & 1
    signs = np.array(
        [
            [2 * ((register & generator).bit_count() % 2) - 1 for generator in _GENERATORS]
            for register in registers.ravel().tolist()
        ]
    ).reshape(2, len(states), 2)
    scores = np.where(states == 0, 0.0, -np.inf)
    choices = []
    for pair in soft.reshape(-1, 2):
        candidates = scores[before] + signs @ pair
        best = candidates.argmax(0)
        choices.append(best)
        scores = candidates[best, states]
    state, bits = 0, []
    for best in reversed(choices):
        bits.append(state & 1)
        state = int(before[best[state], state])
    word = int("".join(map(str, reversed(bits[_MEMORY:]))), 2)
    payload = word >> CRC_BITS
    return payload, _crc(payload) == word & (1 << CRC_BITS) - 1


def _crc(payload: int) -> int:
    """Return the checksum CRC-16/CCITT-FALSE of a payload's four bytes."""
    crc = 0xFFFF
    for byte in payload.to_bytes(PAYLOAD_BITS // 8, "big"):
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc
