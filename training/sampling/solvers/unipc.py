"""UniPC of order 2, a multistep predictor with a corrector that takes no evaluation of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.sampling.solver import Solver, Velocity, intervals
from training.sampling.solvers._multistep import CleanPrediction, exponential_step, extrapolated, half_log_snr

if TYPE_CHECKING:
    from torch import Tensor


class UniPC(Solver):
    """Settings of UniPC-2 (Zhao et al. 2023, "UniPC: a unified predictor-corrector framework") with
    B(h) = e^h - 1, on predictions of the clean latents and the straight path of flow matching.

    The predictor is that of DPM-Solver++(2M). The evaluation at its result corrects the step that led there, and then
    serves the next step. So there is one evaluation per step, and the last step, whose end is not evaluated, is not
    corrected.
    """

    name: str = "unipc"

    def solve(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
        steps = intervals(times)
        last: CleanPrediction | None = None
        now = CleanPrediction(times[0], x - times[0] * velocity(x, times[0]))
        for time, following in steps[:-1]:
            predicted = exponential_step(x, time, following, extrapolated(now, last, following))
            reached = CleanPrediction(following, predicted - following * velocity(predicted, following))
            x = exponential_step(x, time, following, _corrected(reached, now, last))
            last, now = now, reached
        time, following = steps[-1]
        return exponential_step(x, time, following, extrapolated(now, last, following))


def _corrected(reached: CleanPrediction, now: CleanPrediction, last: CleanPrediction | None) -> Tensor:
    """Return the clean latents for the step from `now` to `reached`, by the predictions at both ends and at `last`."""
    if last is None:
        return (now.clean + reached.clean) / 2
    step = half_log_snr(reached.time) - half_log_snr(now.time)
    # Position of `last` in units of the step, from `now`; negative.
    position = (half_log_snr(last.time) - half_log_snr(now.time)) / step
    # Right-hand sides of the order conditions, equation 10 of the paper: phi_2 / phi_1 and 2 phi_3 / phi_1 at -step.
    phi_1 = -math.expm1(-step) / step
    phi_2 = (1 - phi_1) / step
    phi_3 = (0.5 - phi_2) / step
    first, second = phi_2 / phi_1, 2 * phi_3 / phi_1
    weight_last = (first - second) / (1 - position)
    weight_reached = first - weight_last
    slope = (last.clean - now.clean) / position
    return now.clean + weight_last * slope + weight_reached * (reached.clean - now.clean)
