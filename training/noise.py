"""Normal noise by a counter-based generator: each number is a function of a key and a counter.

So a sample's noise depends neither on the other samples of its batch nor on the device: integers are the same to the
bit everywhere, and normal numbers up to the rounding of logarithm, sine and cosine in fp32. Noise is drawn on the
device that needs it, and no more than three integers per sample are copied there.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
"""Multipliers of Philox 4x32."""
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Increments of the two words of the key per round."""
ROUNDS = 10
WORDS = 4
"""Random words, and so normal numbers, per counter."""
MASK = 0xFFFFFFFF
CPU_CHUNK = 16384
"""Counters that a CPU computes at a time, so that intermediate results stay in its caches."""

Words = TypeVar("Words", bound=Any)
"""A numpy array of uint64 or a tensor of int64, whose elements are below 2^32."""


def philox_4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Return the four random words of each counter (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Counters are four words, arrays or tensors of one shape. The product of two words may exceed the range of int64, but
    its low 64 bits are right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        # In place, because allocating new memory takes longer than the arithmetic.
        c0, c2 = second >> 32, first >> 32
        c0 ^= c1
        c0 ^= k0
        c0 &= MASK
        c2 ^= c3
        c2 ^= k1
        c2 &= MASK
        second &= MASK
        first &= MASK
        c1, c3 = second, first
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def keyed_normals(streams_B3: Tensor, n_counters: int, key: int) -> Tensor:
    """Return standard normal noise of several samples, one after the other, `WORDS` numbers per counter, in fp32.

    `streams_B3` has for each sample the index of its first counter among all, and the low and the high word of its
    64-bit hash, on the device of the result. Within a sample, counters count from 0. `n_counters` is the number of all
    counters, at least one per sample, and `key` has 64 bits.

    A CPU computes with numpy, in which this takes half the time.
    """
    words = key & MASK, key >> 32
    if streams_B3.device.type != "cpu":
        position = torch.arange(n_counters, device=streams_B3.device)
        sample = torch.searchsorted(streams_B3[:, 0].contiguous(), position, right=True) - 1
        first, low, high = streams_B3.index_select(0, sample).unbind(1)
        random = philox_4x32((position - first, torch.zeros_like(position), low, high), words)
        return torch.stack(_normals(torch, [word.to(torch.float32) for word in random]), dim=-1).flatten()
    streams_3B = streams_B3.numpy().astype(np.uint64).T
    samples = np.repeat(np.arange(len(streams_B3)), np.diff(streams_3B[0].astype(np.int64), append=n_counters))
    noise = np.empty((n_counters, WORDS), np.float32)
    for start in range(0, n_counters, CPU_CHUNK):
        counters = np.arange(start, min(start + CPU_CHUNK, n_counters), dtype=np.uint64)
        first, low, high = streams_3B[:, samples[start : start + CPU_CHUNK]]
        found = philox_4x32((counters - first, np.zeros_like(counters), low, high), words)
        for column, values in enumerate(_normals(np, [word.astype(np.float32) for word in found])):
            noise[start : start + CPU_CHUNK, column] = values
    return torch.from_numpy(noise.reshape(-1))


def _normals(xp: Any, words: list[Words]) -> list[Words]:
    """Return normal numbers from words in fp32, changing the words; `xp` is the module `numpy` or `torch`.

    Box and Muller 1958: a radius and an angle make two numbers. The uniform numbers are in (0, 1], so every logarithm
    is finite.
    """
    found = []
    for radius, angle in (words[:2], words[2:]):
        radius += 0.5
        radius *= 2.0**-32
        radius = xp.sqrt(-2 * xp.log(radius))
        angle *= 2 * math.pi * 2.0**-32
        found += [radius * xp.cos(angle), radius * xp.sin(angle)]
    return found
