"""The contract of an objective: how latents are noised, what the model learns to predict, and how noise becomes latents."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Settings are read by every command, and importing torch takes 2 s.
    from torch import Tensor

FOLDER = "training.objectives"


class ObjectiveSettings(Plugin):
    """Settings of an objective, by `name`. One subclass a file in `training/objectives/`.

    Time runs from 0 (clean latents) to 1 (pure noise). `n_tokens` is the length of the model's sequence, because larger
    pictures need more noise to lose the same information. Times are tensors that broadcast against the latents.
    """

    @abc.abstractmethod
    def time(self, quantile: float, n_tokens: int) -> float:
        """The noise level below which a share `quantile`, in (0, 1), of samples of that size is trained; in [0, 1], never falling."""

    @abc.abstractmethod
    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Latents at noise level `time`."""

    @abc.abstractmethod
    def target_of(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the model should return for `corrupt(clean, noise, time)`."""

    @abc.abstractmethod
    def velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """dx/dt of the sampling equation, from the model's prediction at `noisy`."""

    @abc.abstractmethod
    def schedule(self, steps: int, n_tokens: int) -> tuple[float, ...]:
        """`steps + 1` strictly falling times from 1 to 0, at which a sampler evaluates the model."""
