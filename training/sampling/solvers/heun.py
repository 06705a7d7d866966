"""Heun's method, the trapezoidal rule with a predicted end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.sampling.solver import Solver, Velocity, intervals

if TYPE_CHECKING:
    from torch import Tensor


class Heun(Solver):
    """Settings of Heun's method (Karras et al. 2022, algorithm 1): each step takes the mean of the velocities at its
    start and at its end as Euler predicts it.

    It is of second order. A step that ends at time 0 is one of Euler, since models are hardly trained at time 0. So n
    steps take 2 n - 1 evaluations.
    """

    name: str = "heun"

    def solve(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
        for time, following in intervals(times):
            slope = velocity(x, time)
            if following > 0:
                slope = (slope + velocity(x + (following - time) * slope, following)) / 2
            x = x + (following - time) * slope
        return x

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1
