"""Flow matching on straight lines between data and noise, with the noise level shifted by resolution."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from cluster.config import Settings
from training.objective import ObjectiveSettings

if TYPE_CHECKING:
    from torch import Tensor

MIN_DIVISOR = 0.02
"""Smallest t or 1 - t that a velocity is divided by. Near t = 0 the noise cannot be computed from the noisy latents,
and near t = 1 the clean latents cannot."""
MIN_LOSS_DIVISOR = 0.05
"""Smallest t or 1 - t by which the loss of a velocity divides the error of x or e (Li and He 2025, "Back to basics: let
denoising generative models denoise")."""


class LogLinearShift(Settings):
    """Settings of a shift whose logarithm is linear in the number of tokens, as of LTX-Video."""

    tokens: tuple[int, int] = Field(description="Two numbers of tokens.")
    log: tuple[float, float] = Field(description="Logarithm of the shift at these numbers.")
    last: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Last noise level above 0 of a sampling schedule, to which it is stretched; without it, the shift "
        "of the last one.",
    )

    def at(self, n_tokens: int) -> float:
        """Return the shift for sequences of `n_tokens` tokens."""
        (low, high), (log_low, log_high) = self.tokens, self.log
        slope = (log_high - log_low) / (high - low)
        return math.exp(log_low + slope * (n_tokens - low))


class FlowMatching(ObjectiveSettings):
    """Settings of rectified flow (Liu et al. 2022, Lipman et al. 2022): x_t = (1 - t) x + t e, with velocity v = e - x.

    The model predicts v, the clean latents x, or the noise e. Sampling follows v in all cases:
    v = (x_t - x) / t = (e - x_t) / (1 - t).

    The loss is the squared error of v, whatever is predicted: that of x divided by t^2, or that of e by (1 - t)^2.
    With `loss: target` it is that of the predicted quantity.

    Training times are logit-normal. Training and sampling times are shifted by t' = a t / (1 + (a - 1) t) with
    a = clip(sqrt(S / shift_tokens), 1, max_shift) for S tokens (Esser et al. 2024, sections 3.1 and 5.3.2). Published
    models have a shift of their own, which `shift` sets.
    """

    name: str = "flow_matching"
    target: Literal["v", "x", "eps"] = Field(
        "v", description="What the model predicts: the velocity, the clean latents or the noise."
    )
    loss: Literal["v", "target"] = Field(
        "v", description="Quantity whose squared error is the loss: the velocity, or what the model predicts."
    )
    time_mean: float = Field(
        0.0,
        description="Mean of the normal distribution whose sigmoid is the training time; higher means noisier latents.",
    )
    time_std: float = Field(1.0, gt=0, description="Standard deviation of that normal distribution.")
    time_range: tuple[float, float] = Field(
        (0.0, 1.0),
        description="Lowest and highest training time; within it, times are distributed as without a range. An expert "
        "of a published model has that of its noise levels.",
    )
    shift_tokens: int = Field(
        256,
        ge=1,
        description="Tokens up to which times are not shifted; Esser et al. use 256, of 256x256 pixels.",
    )
    max_shift: float = Field(12.0, ge=1, description="Largest shift a, however long the sequence.")
    shift: Annotated[float, Field(gt=0)] | LogLinearShift | None = Field(
        None,
        description="Shift a of all sequences, or one whose logarithm is linear in the tokens, in place of the one by "
        "shift_tokens; a published model sets its own.",
    )

    @field_validator("time_range")
    @classmethod
    def _rises_within_0_and_1(cls, time_range: tuple[float, float]) -> tuple[float, float]:
        low, high = time_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"time_range [{low:g}, {high:g}] must rise and lie within 0 and 1, such as [0, 0.9]")
        return time_range

    def shift_at(self, n_tokens: int) -> float:
        """Return the shift a for sequences of `n_tokens` tokens."""
        if isinstance(self.shift, LogLinearShift):
            return self.shift.at(n_tokens)
        if self.shift is not None:
            return self.shift
        return min(max(math.sqrt(n_tokens / self.shift_tokens), 1.0), self.max_shift)

    def time(self, quantile: float, n_tokens: int) -> float:
        normal, shift = NormalDist(self.time_mean, self.time_std), self.shift_at(n_tokens)
        low, high = (normal.cdf(_log_odds(shift_time(end, 1 / shift))) for end in self.time_range)
        drawn = normal.inv_cdf(low + quantile * (high - low))
        time = shift_time(1 / (1 + math.exp(-drawn)), shift)
        return min(max(time, self.time_range[0]), self.time_range[1])

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return (1 - time) * clean + time * noise

    def training_target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return {"v": noise - clean, "x": clean, "eps": noise}[self.target]

    def loss_weight(self, time: Tensor) -> Tensor:
        if self.loss == "target" or self.target == "v":
            return super().loss_weight(time)
        divisor = time if self.target == "x" else 1 - time
        return divisor.clamp_min(MIN_LOSS_DIVISOR).square().reciprocal()

    def velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        if self.target == "x":
            return (noisy - prediction) / time.clamp_min(MIN_DIVISOR)
        if self.target == "eps":
            return (prediction - noisy) / (1 - time).clamp_min(MIN_DIVISOR)
        return prediction

    def schedule(self, steps: int, n_tokens: int) -> tuple[float, ...]:
        shift = self.shift_at(n_tokens)
        times = [shift_time(1 - step / steps, shift) for step in range(steps)]
        last = self.shift.last if isinstance(self.shift, LogLinearShift) else None
        if last is not None and steps > 1:
            stretch = (1 - last) / (1 - times[-1])
            times = [1 - stretch * (1 - time) for time in times]
        return (*times, 0.0)


def shift_time(time: float, shift: float) -> float:
    """Return t' = a t / (1 + (a - 1) t), which rises on [0, 1] and keeps both ends; a > 1 moves times towards noise."""
    excess = (shift - 1) * time
    # In this form the result is between `time` and 1 in spite of rounding.
    return time + (1 - time) * (excess / (1 + excess))


def _log_odds(time: float) -> float:
    """Return log(t / (1 - t)), which is infinite at both ends."""
    if time in (0, 1):
        return math.inf if time else -math.inf
    return math.log(time / (1 - time))
