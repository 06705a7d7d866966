"""The contract of guidance: how the prediction for the prompt is moved away from a worse one."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from torch import Tensor

FOLDER = "training.sampling.guidances"


@dataclass(frozen=True)
class VelocityPair:
    """Two velocities `[C, T, H, W]` at the same noisy latents. Conditioning frames are 0 in all three tensors."""

    conditional: Tensor
    """Velocity for the prompt."""
    worse: Tensor
    """Velocity for the null caption or the negative prompt, or that of a weaker model for the prompt."""
    noisy: Tensor
    time: float
    """Noise level, from 1 (noise) to 0."""


class Guidance(Plugin):
    """Settings of guidance, chosen by `name`. Each file in `training/sampling/guidances/` has one subclass."""

    interval: tuple[float, float] = Field(
        (0.0, 1.0),
        description="Lowest and highest noise level with guidance (Kynkäänniemi et al. 2024); outside, the prediction "
        "for the prompt is taken alone, at half the cost.",
    )

    @field_validator("interval")
    @classmethod
    def _rises_within_0_and_1(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval [{low:g}, {high:g}] must rise and lie within 0 and 1, such as [0.2, 0.8]")
        return interval

    def active(self, time: float, scale: float) -> bool:
        """Return whether there is guidance at this noise level."""
        low, high = self.interval
        return self.is_on(scale) and low <= time <= high

    def is_on(self, scale: float) -> bool:
        """Return whether the prediction for the prompt is moved away from a worse one; a scale of 1 turns it off."""
        return scale != 1

    def embedded(self, scale: float) -> float:
        """Return the scale that the model itself is told, as in training by default."""
        return 1.0

    @property
    def weaker_export(self) -> str | None:
        """Folder of the export that predicts the worse velocity; None for the model itself without the prompt."""
        return None

    @abc.abstractmethod
    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        """Return the guided velocity, of the shape of both; 0 in conditioning frames."""
