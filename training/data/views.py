"""How often each sample is seen in an epoch: once, or by its bucket's weight from the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

LARGEST_DENOMINATOR = 10**6
"""Weights are exact as fractions up to this: a third may be written as 0.3333333."""


@dataclass(frozen=True, eq=False)
class BucketViews:
    """The samples of one bucket and how often each is seen.

    A sample whose place in `turns` is p of n has been seen floor(E * factor + p / n) times before epoch E. So it is seen `factor` times an
    epoch on average, at any moment within one of that; and of the n samples, floor(n * E * factor) are seen in the first E epochs.
    """

    name: str
    rows: Int64s
    """Row numbers of the manifest's table."""
    tokens: int
    """Latent cells of each sample."""
    factor: Fraction
    turns: Int64s
    """A permutation of 0 to n - 1: whose turn comes when."""

    @property
    def least_views(self) -> int:
        """The least number of views an epoch has."""
        return len(self.rows) * self.factor.numerator // self.factor.denominator

    def n_views(self, epoch: int) -> int:
        """How many samples are seen in an epoch, those that are seen twice counted twice."""
        # Hermite's identity: the sum of floor(x + p / n) over p is floor(n * x).
        before, after = (
            len(self.rows) * number * self.factor.numerator // self.factor.denominator for number in (epoch, epoch + 1)
        )
        return after - before

    def views(self, epoch: int) -> tuple[Int64s, Int64s]:
        """Row of every view in an epoch, and how often that sample was seen before; ordered by row."""
        if self.factor == 1:
            return self.rows, np.full(len(self.rows), epoch)
        before, after = self._seen(epoch), self._seen(epoch + 1)
        counts = after - before
        copy = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(self.rows, counts), np.repeat(before, counts) + copy

    def _seen(self, epochs: int) -> Int64s:
        """How often each sample has been seen in the first `epochs` epochs, in whole numbers throughout."""
        n, over, under = len(self.rows), self.factor.numerator, self.factor.denominator
        whole, part = divmod(epochs * over * n, under * n)
        return whole + (part + self.turns * under) // (under * n)


def by_bucket(buckets: Sequence[str]) -> tuple[list[str], Int64s]:
    """The names that occur, sorted, and the number of each row's."""
    names = sorted(set(buckets))
    number = {name: place for place, name in enumerate(names)}
    return names, np.fromiter((number[name] for name in buckets), np.int64, len(buckets))


def factors_of(weights: Mapping[str, float], names: Sequence[str]) -> list[Fraction]:
    """Factor of each bucket `WIDTHxHEIGHTxFRAMES`: the product of the weights whose patterns match its name or its `WIDTHxHEIGHT`.

    Raises `ValueError` for a pattern that matches none.
    """
    for pattern in weights:
        if not any(_matches(pattern, name) for name in names):
            raise ValueError(f"weights: no bucket matches '{pattern}'; there are {', '.join(names)}")
    exact = {pattern: Fraction(weight).limit_denominator(LARGEST_DENOMINATOR) for pattern, weight in weights.items()}
    return [
        prod((factor for pattern, factor in exact.items() if _matches(pattern, name)), start=Fraction(1))
        for name in names
    ]


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("x")[0], pattern)
