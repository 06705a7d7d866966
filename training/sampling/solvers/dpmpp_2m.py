"""DPM-Solver++(2M), a multistep method on predictions of the clean latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.sampling.solver import Solver, Velocity, intervals
from training.sampling.solvers._multistep import CleanPrediction, exponential_step, extrapolated

if TYPE_CHECKING:
    from torch import Tensor


class Dpmpp2M(Solver):
    """Settings of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) on the straight path of flow matching.

    The linear part of the equation is solved exactly. The clean latents are extrapolated from the last two evaluations,
    linearly in half the logarithm of the signal-to-noise ratio. It is of second order with one evaluation per step.
    The first step is of first order, and so is one that ends at time 0, where that logarithm is infinite.
    """

    name: str = "dpmpp_2m"

    def solve(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
        last: CleanPrediction | None = None
        for time, following in intervals(times):
            now = CleanPrediction(time, x - time * velocity(x, time))
            x = exponential_step(x, time, following, extrapolated(now, last, following))
            last = now
        return x
