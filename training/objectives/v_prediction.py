"""v-prediction at the discrete noise levels of a variance-preserving process, as CogVideoX was trained."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from training.objective import ObjectiveSettings

if TYPE_CHECKING:
    from torch import Tensor


class VPrediction(ObjectiveSettings):
    """Settings of v-prediction (Salimans and Ho 2022): of x_k = a x + s e, with a^2 + s^2 = 1, the model predicts
    v = a e - s x.

    Time is t = s / (a + s), so that x_k = (a + s) x_t with x_t = (1 - t) x + t e: latents are noised and solved as by
    flow matching, and Euler's solver takes the steps of DDIM. `scale` returns a + s, by which a network that was
    trained on x_k multiplies its input.

    The levels are those of betas whose roots are linear. Then s^2 / a^2 is multiplied by `snr_shift`, and a is
    stretched to end at 0 (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", algorithm
    1). In training all levels are equally likely, and the loss is the squared error of v.
    """

    name: str = "v_prediction"
    levels: int = Field(1000, ge=2, description="Number of noise levels.")
    beta_start: float = Field(0.00085, gt=0, lt=1, description="Variance that the first level adds.")
    beta_end: float = Field(0.012, gt=0, lt=1, description="Variance that the last level adds, before it is all noise.")
    snr_shift: float = Field(
        3.0,
        gt=0,
        description="Factor of the ratio s^2 / a^2 of noise to signal: 3 in CogVideoX-2B and 1 in CogVideoX-5B.",
    )

    @property
    def times(self) -> tuple[float, ...]:
        """Time of each noise level, rising to 1."""
        return _times(self.levels, self.beta_start, self.beta_end, self.snr_shift)

    def level(self, time: Tensor) -> Tensor:
        """Return the index of the noise level that is nearest to each time, int64 of the same shape."""
        import torch

        times = torch.tensor(self.times, dtype=torch.float64, device=time.device)
        return torch.bucketize(time.double(), (times[1:] + times[:-1]) / 2)

    def time(self, quantile: float, n_tokens: int) -> float:
        return self.times[int(quantile * self.levels)]

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return (1 - time) * clean + time * noise

    def scale(self, time: Tensor) -> Tensor:
        """Return a + s = 1 / sqrt((1 - t)^2 + t^2)."""
        return ((1 - time).square() + time.square()).rsqrt()

    def training_target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.scale(time) * ((1 - time) * noise - time * clean)

    def velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        # e - x = (s x_k + a v) - (a x_k - s v) = (a + s) v + (s - a) x_k
        scale = self.scale(time)
        return scale * (prediction + (2 * time - 1) * scale * noisy)

    def schedule(self, steps: int, n_tokens: int) -> tuple[float, ...]:
        if steps > self.levels:
            raise ValueError(f"{steps} steps: the objective has {self.levels} noise levels; set steps to at most these")
        return (*(self.times[round(self.levels * (1 - step / steps)) - 1] for step in range(steps)), 0.0)


@cache
def _times(levels: int, beta_start: float, beta_end: float, snr_shift: float) -> tuple[float, ...]:
    """Return the times of `VPrediction.times`."""
    start, end = math.sqrt(beta_start), math.sqrt(beta_end)
    signals, product = [], 1.0
    for index in range(levels):
        product *= 1 - (start + (end - start) * index / (levels - 1)) ** 2
        signals.append(math.sqrt(product / (snr_shift + (1 - snr_shift) * product)))
    first, last = signals[0], signals[-1]
    stretched = [first * ((signal - last) / (first - last)) for signal in signals]
    noises = [math.sqrt(1 - signal**2) for signal in stretched]
    return tuple(noise / (signal + noise) for signal, noise in zip(stretched, noises, strict=True))
