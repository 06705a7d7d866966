"""The samples of one epoch in random order: each once, or as often as the weight of its bucket says.

Orders are the same on every machine and with every version of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod

import numpy as np

from cluster.arrays import Int64Array
from cluster.storage import digest

MAX_DENOMINATOR = 10**6
"""Largest denominator of a weight as a fraction: a third may be written as 0.3333333."""


@dataclass(frozen=True, eq=False)
class WeightedBucket:
    """The samples of one bucket and their weight, which is how often each is seen per epoch on average.

    A sample whose position is p of n was seen floor(E * weight + p / n) times before epoch E. So at any time the count
    of a sample is within one of E * weight, and the n samples together were seen floor(n * E * weight) times.
    """

    name: str
    rows: Int64Array
    """Row numbers of the manifest's table."""
    n_tokens: int
    """Latent cells of each sample."""
    weight: Fraction
    positions: Int64Array
    """Position of each sample, a permutation of 0 to n - 1: which samples an epoch with a fractional weight has."""

    @property
    def min_occurrences(self) -> int:
        """Smallest number of occurrences in an epoch."""
        return len(self.rows) * self.weight.numerator // self.weight.denominator

    def n_occurrences(self, epoch: int) -> int:
        """Return the number of occurrences in an epoch; a sample that is seen twice has two."""
        # Hermite's identity: the sum of floor(x + p / n) over p is floor(n * x).
        before, after = (
            len(self.rows) * number * self.weight.numerator // self.weight.denominator for number in (epoch, epoch + 1)
        )
        return after - before

    def occurrences(self, epoch: int) -> tuple[Int64Array, Int64Array]:
        """Return the row of every occurrence in an epoch and how often the sample was seen before, ordered by row."""
        if self.weight == 1:
            return self.rows, np.full(len(self.rows), epoch)
        before, after = self._times_seen(epoch), self._times_seen(epoch + 1)
        counts = after - before
        repeat = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(self.rows, counts), np.repeat(before, counts) + repeat

    def _times_seen(self, n_epochs: int) -> Int64Array:
        """Return how often each sample is seen in the first `n_epochs` epochs, computed with integers throughout."""
        n, numerator, denominator = len(self.rows), self.weight.numerator, self.weight.denominator
        whole, part = divmod(n_epochs * numerator * n, denominator * n)
        return whole + (part + self.positions * denominator) // (denominator * n)


def bucket_weights(weights: Mapping[str, float], names: Sequence[str]) -> list[Fraction]:
    """Return the weight of each bucket: the product of all weights whose pattern matches it, 1 if none does.

    A pattern matches a bucket by its name `WIDTHxHEIGHTxFRAMES` or by its `WIDTHxHEIGHT`. Raises `ValueError` for a
    pattern that matches no bucket.
    """
    for pattern in weights:
        if not any(_matches(pattern, name) for name in names):
            raise ValueError(f"weights: no bucket matches '{pattern}'; there are {', '.join(names)}")
    exact = {pattern: Fraction(weight).limit_denominator(MAX_DENOMINATOR) for pattern, weight in weights.items()}
    return [
        prod((weight for pattern, weight in exact.items() if _matches(pattern, name)), start=Fraction(1))
        for name in names
    ]


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("x")[0], pattern)


class Shuffle:
    """Random orders of values, in which the values of one group stay together and groups ascend.

    Groups are small integers, values are different integers, and none is negative. Each value's key has its group as
    the high bits, random bits in the middle and the value as the low bits, so sorting the keys sorts the values; this
    is several times as fast as a stable argsort. The random bits are those of Philox, which numpy keeps the same in all
    versions, unlike its shuffles. A million values in a thousand groups have 33 random bits each: about one pair in
    10^10 is expected to have equal ones, which leave its two values in order.
    """

    def __init__(self, groups: Int64Array, values: Int64Array) -> None:
        self._value_bits = int(values.max(initial=0)).bit_length()
        self._random_bits = 63 - self._value_bits - int(groups.max(initial=0)).bit_length()
        self._keys = groups << (self._value_bits + self._random_bits)
        self._keys |= values

    def shuffled(self, seed: int, epoch: int, purpose: str) -> Int64Array:
        """Return the values in the order that follows from `seed`, `epoch` and `purpose`."""
        key = int(digest(str(seed), str(epoch), purpose, size_bytes=16), 16)
        random = np.random.Philox(key=key).random_raw(len(self._keys))
        # In place: allocating an array of a million integers takes longer than the operation on it.
        random >>= np.uint64(64 - self._random_bits)
        random <<= np.uint64(self._value_bits)
        values: Int64Array = random.view(np.int64)
        values |= self._keys
        values.sort()
        values &= 2**self._value_bits - 1
        return values


def permutation(count: int, seed: int, epoch: int, purpose: str) -> Int64Array:
    """Return a permutation of 0 to `count - 1` that follows from `seed`, `epoch` and `purpose`."""
    return Shuffle(np.zeros(count, np.int64), np.arange(count)).shuffled(seed, epoch, purpose)
