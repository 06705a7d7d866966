"""Chance that is keyed, not counted: the same numbers for the same seed and keys on any machine, device, rank and batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.storage import digest

# Shape suffixes: N samples.

UInt64s = NDArray[np.uint64]
Float64s = NDArray[np.float64]


def generator(seed: int, *keys: str | int) -> torch.Generator:
    """A CPU generator for these keys."""
    return torch.Generator().manual_seed(_bits(seed, *keys) % 2**63)


def numbers_of(uids: Iterable[str]) -> UInt64s:
    """64 bits of a hash of each uid, for `uniforms`."""
    joined = b"".join(hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def uniforms(numbers_N: UInt64s, seed: int, *keys: str | int) -> Float64s:
    """For each sample a number in [0, 1), of 53 bits; other keys, other numbers. 12 ns a sample, where a generator for each takes 11 µs.

    Hashes of samples and keys are mixed as the output of SplitMix64 is (Steele et al. 2014, Fast splittable pseudorandom number generators).
    """
    mixed = numbers_N ^ np.uint64(_bits(seed, *keys))
    # In place: new arrays cost more than what is done with them.
    shifted = np.empty_like(mixed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= np.right_shift(mixed, np.uint64(shift), out=shifted)
        mixed *= np.uint64(factor)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    mixed >>= np.uint64(11)
    uniform: Float64s = np.multiply(mixed, 2.0**-53, out=shifted.view(np.float64))
    return uniform


def _bits(seed: int, *keys: str | int) -> int:
    """64 bits of a hash of the keys."""
    return int(digest(str(seed), *(str(key) for key in keys), size_bytes=8), 16)
