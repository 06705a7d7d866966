"""Gradient norms out of the ordinary, by a rule that gives the same answer on every rank and after a restart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

WINDOW = 128
"""Norms the median is taken of."""
MIN_NORMS = 16
"""With fewer there is no telling what is ordinary, and nothing is skipped."""


class SpikeDetector:
    """The bound for the next gradient norm: `factor` times the median of the last ones; none with a factor of None.

    Norms of skipped steps count too, so where norms have risen for good, skipping ends after half a window.
    """

    def __init__(self, factor: float | None, norms: Sequence[float] = ()) -> None:
        self._factor = factor
        self.norms = list(norms)
        """The last norms, oldest first; all of the state."""

    def limit(self) -> float:
        """Largest norm of a step that is not skipped."""
        if self._factor is None or len(self.norms) < MIN_NORMS:
            return math.inf
        return self._factor * statistics.median(self.norms)

    def add(self, norm: float) -> None:
        """Take in the norm of a step, taken or skipped."""
        self.norms = [*self.norms, norm][-WINDOW:]
