"""The contract of an objective: how latents are noised, what the model predicts, and how predictions become a sampling
velocity.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from torch import Tensor

FOLDER = "training.objectives"


class ObjectiveSettings(Plugin):
    """Settings of an objective, chosen by `name`. Each file in `training/objectives/` has one subclass.

    Time is the noise level, from 0 (clean latents) to 1 (pure noise). `n_tokens` is the length of the model's sequence,
    because larger images need more noise to lose the same information. Tensors `time` broadcast against the latents.
    """

    @abc.abstractmethod
    def time(self, quantile: float, n_tokens: int) -> float:
        """Return the time in [0, 1] at this quantile, in (0, 1), of the training distribution for samples of this
        length.

        It never falls as the quantile rises.
        """

    @abc.abstractmethod
    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the latents noised to noise level `time`."""

    @abc.abstractmethod
    def training_target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the prediction that the model should make for `corrupt(clean, noise, time)`."""

    def loss_weight(self, time: Tensor) -> Tensor:
        """Return the factor of the squared error at noise level `time`, of its shape; 1 unless a subclass differs."""
        return time.new_ones(time.shape)

    @abc.abstractmethod
    def velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Return dx/dt of the sampling equation at `noisy`, from the model's prediction there."""

    @abc.abstractmethod
    def schedule(self, steps: int, n_tokens: int) -> tuple[float, ...]:
        """Return the `steps + 1` strictly falling times from 1 to 0 at which a sampler evaluates the model."""
