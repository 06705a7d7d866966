"""Second-order steps on predictions of the clean latents, which two solvers share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MAX_TIME = 1 - 1e-6
"""Latest time at which the signal-to-noise ratio is taken, since its logarithm is infinite at pure noise."""


class CleanPrediction(NamedTuple):
    """The clean latents as predicted at a time."""

    time: float
    clean: Tensor


def half_log_snr(time: float) -> float:
    """Return lambda = log((1 - t) / t), half the logarithm of the signal-to-noise ratio; infinite at t = 0."""
    return math.inf if time == 0 else math.log1p(-min(time, MAX_TIME)) - math.log(min(time, MAX_TIME))


def exponential_step(x: Tensor, time: float, following: float, clean: Tensor) -> Tensor:
    """Return x at `following`, exact if the clean latents are the same on the whole step.

    It is (t' / t) x + (1 - t' / t) clean: equation 8 of Lu et al. 2022, "DPM-Solver++", on the straight path.
    """
    ratio = following / time
    return ratio * x + (1 - ratio) * clean


def extrapolated(now: CleanPrediction, last: CleanPrediction | None, following: float) -> Tensor:
    """Return the clean latents for the step from `now` to `following`: linear in lambda through two predictions.

    They are `now.clean` for the first step, and for one that ends at time 0, where lambda is infinite.
    """
    if last is None or following == 0:
        return now.clean
    start, end, before = half_log_snr(now.time), half_log_snr(following), half_log_snr(last.time)
    return now.clean + (end - start) / (2 * (start - before)) * (now.clean - last.clean)
