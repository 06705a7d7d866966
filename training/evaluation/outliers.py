"""Outliers: which values are lower than a sample of ordinary ones explains, at a stated rate of false alarms.

Within the ordinary values, the probability of a value is its conformal one: the share of ordinary values that are as
low, itself counted (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal p-values"). Below their
lowest tenth it falls exponentially, as the excess of distributions with a light tail does (Pickands 1975). Without
that, a single copy among many clips could not be told from chance with fewer than thousands of ordinary values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.arrays import BoolArray, Float64Array

MIN_ORDINARY = 20
"""Ordinary values without which nothing can be said of others."""
TAIL_SHARE, MIN_TAIL = 0.1, 10
"""Share of the ordinary values whose distances below the next one tell how fast the tail falls, and the fewest."""


class Ordinary:
    """The distribution of ordinary values, by a sample of them."""

    def __init__(self, values: Sequence[float]) -> None:
        """Fit the tail. Raises `ValueError` for fewer than `MIN_ORDINARY` values."""
        if len(values) < MIN_ORDINARY:
            raise ValueError(f"{len(values)} values tell too little of others; at least {MIN_ORDINARY} are needed")
        self._sorted = np.sort(np.asarray(values, np.float64))
        n_tail = max(MIN_TAIL, round(TAIL_SHARE * len(values)))
        self._tail_start = float(self._sorted[n_tail])
        self._tail_probability = (n_tail + 1) / (len(values) + 1)
        mean_excess = float(np.mean(self._tail_start - self._sorted[:n_tail]))
        self._mean_excess = max(mean_excess, float(np.finfo(np.float64).tiny))

    def probabilities(self, values: Sequence[float]) -> Float64Array:
        """Return the probability `[N]` that an ordinary value is as low as each of N values."""
        values_N = np.asarray(values, np.float64)
        within_N = (1 + np.searchsorted(self._sorted, values_N, side="right")) / (len(self._sorted) + 1)
        excess_N = np.maximum(self._tail_start - values_N, 0)
        in_tail_N = self._tail_probability * np.exp(-excess_N / self._mean_excess)
        return np.where(excess_N > 0, in_tail_N, np.minimum(within_N, 1.0))

    def value_at(self, probability: float) -> float:
        """Return the value in the tail that an ordinary one is below with this probability, or less than it."""
        excess = math.log(self._tail_probability / min(probability, self._tail_probability)) * self._mean_excess
        return self._tail_start - excess


def flagged(probabilities: Sequence[float], rate: float) -> BoolArray:
    """Return which of N tests `[N]` are flagged, by the procedure of Benjamini and Hochberg 1995.

    Of the flagged ones, at most the share `rate` is flagged by chance in the mean. If nothing is out of the ordinary,
    `rate` is the largest probability that any is.
    """
    probabilities_N = np.asarray(probabilities, np.float64)
    ranked_N = np.sort(probabilities_N)
    passed = np.flatnonzero(ranked_N <= rate * np.arange(1, len(ranked_N) + 1) / max(len(ranked_N), 1))
    return probabilities_N <= (ranked_N[passed[-1]] if len(passed) else -1.0)
