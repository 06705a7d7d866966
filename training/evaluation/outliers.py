"""Outliers: which values are lower than all of a sample of ordinary ones, at a stated rate of false alarms.

If no value is out of the ordinary, all values and the ordinary ones are exchangeable. The probability that at least k
of the N values are lower than all M ordinary ones is then the probability that the k lowest of all are among the N,
whatever their distribution: the product of (N - i) / (N + M - i) for i below k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.arrays import BoolArray


def chance(n_lower: int, n_values: int, n_ordinary: int) -> float:
    """Return the probability that `n_lower` values or more are lower than all ordinary ones."""
    if n_lower > n_values:
        return 0.0
    return math.prod((n_values - i) / (n_values + n_ordinary - i) for i in range(n_lower))


def fewest(n_values: int, n_ordinary: int, rate: float) -> int:
    """Return the smallest number of values lower than all ordinary ones that chance gives with at most this rate.

    It is above `n_values` if there are too few ordinary values to tell.
    """
    return next(k for k in range(1, n_values + 2) if chance(k, n_values, n_ordinary) <= rate)


def flagged(values: Sequence[float], ordinary: Sequence[float], rate: float, tries: int = 1) -> BoolArray:
    """Return which of N values `[N]` are flagged: those lower than all ordinary ones, if chance gives fewer of them.

    If nothing is out of the ordinary, `rate` is the largest probability that any is flagged. Each value may be the
    lowest of several `tries`; then it counts as so many.
    """
    lower_N = np.asarray(values, np.float64) < min(ordinary)
    enough = lower_N.sum() >= fewest(tries * len(lower_N), len(ordinary), rate)
    return lower_N & bool(enough)
