"""Which samples are given their last picture, which is one more latent frame to hold and to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Tails:
    """What the planner has to know of last pictures: where chance gives one, and what it adds."""

    is_given: Callable[[Int64s | slice, int], NDArray[np.bool_]]
    """Whether samples, by their rows, are given it when each has been seen so often before. Pure, and the same on every rank; of images,
    which have none, it may say anything."""
    cells: Mapping[str, int]
    """Latent cells that it adds to a sample of each bucket; 0 for images."""
