"""Flow matching on straight lines between data and noise, with the noise level shifted by resolution."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from training.objective import ObjectiveSettings

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.02
"""Smallest t or 1 - t that a velocity is divided by: at either end one of clean and noise can no longer be told from the latents."""


class FlowMatching(ObjectiveSettings):
    """Rectified flow (Liu et al. 2022, Lipman et al. 2022): x_t = (1 - t) x + t e, whose velocity is v = e - x.

    The model predicts v, the clean latents x, or the noise e; sampling follows v whichever it is: v = (x_t - x) / t = (e - x_t) / (1 - t).
    The loss is the square of the predicted quantity's error, so x weighs a velocity's error by t^2 and eps by (1 - t)^2.

    Training times are logit-normal and both training and sampling times are shifted by t' = a t / (1 + (a - 1) t) with
    a = clip(sqrt(S / shift_tokens), 1, max_shift) (Esser et al. 2024, sections 3.1 and 5.3.2).
    """

    name: str = "flow_matching"
    target: Literal["v", "x", "eps"] = Field(
        "v", description="What the model predicts: the velocity, the clean latents or the noise."
    )
    time_mean: float = Field(
        0.0, description="Mean of the normal whose sigmoid is the training time; higher trains noisier latents."
    )
    time_std: float = Field(1.0, gt=0, description="Standard deviation of that normal.")
    shift_tokens: int = Field(
        256,
        ge=1,
        description="Sequence length at which times are not shifted; Esser et al. use 256x256 pixels, 256 tokens.",
    )
    max_shift: float = Field(12.0, ge=1, description="Largest shift a, however long the sequence.")

    def shift(self, n_tokens: int) -> float:
        """The shift a for sequences of that many tokens."""
        return min(max(math.sqrt(n_tokens / self.shift_tokens), 1.0), self.max_shift)

    def time(self, quantile: float, n_tokens: int) -> float:
        normal = NormalDist(self.time_mean, self.time_std).inv_cdf(quantile)
        return shifted(1 / (1 + math.exp(-normal)), self.shift(n_tokens))

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return (1 - time) * clean + time * noise

    def training_target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return {"v": noise - clean, "x": clean, "eps": noise}[self.target]

    def velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        if self.target == "x":
            return (noisy - prediction) / time.clamp_min(LEAST)
        if self.target == "eps":
            return (prediction - noisy) / (1 - time).clamp_min(LEAST)
        return prediction

    def schedule(self, steps: int, n_tokens: int) -> tuple[float, ...]:
        shift = self.shift(n_tokens)
        return tuple(shifted(1 - step / steps, shift) for step in range(steps + 1))


def shifted(time: float, shift: float) -> float:
    """Shift t' = a t / (1 + (a - 1) t): monotone on [0, 1] with both ends fixed; for a > 1 it moves times towards noise."""
    more = (shift - 1) * time
    # Written as what is added, so that rounding too leaves it between `time` and 1.
    return time + (1 - time) * (more / (1 + more))
