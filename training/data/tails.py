"""Which samples are given their last picture, which is one more latent frame to hold and to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: N samples of the manifest.

Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tails:
    """What the planner has to know of last pictures: where chance gives one, and what it adds."""

    is_given: Callable[[Int64s, Int64s | int], NDArray[np.bool_]]
    """Whether videos, by their rows, are given it when each has, or all have, been seen so often before. Pure, and the same on every rank."""
    cells_N: Int64s
    """Latent cells that it adds to each sample; 0 for an image, which has none."""

    def of(self, samples: Int64s, passes: Int64s | int) -> Int64s:
        """Places of those of these samples, each or all with so many passes before, that are given it."""
        (given,) = np.nonzero(self.is_given(samples, passes))
        return given[self.cells_N[samples[given]] > 0]
