"""Autoguidance: away from a weaker version of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.sampling.guidance import Guidance, VelocityPair

if TYPE_CHECKING:
    from torch import Tensor


class Autoguidance(Guidance):
    """Settings of autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself"):
    w + g (c - w), where w is the velocity that a weaker model predicts for the same prompt.

    A model that was trained for fewer steps, or a smaller one on the same latents and text encoder, is weaker in the
    same manner as this one. It needs no dropped captions in training.
    """

    name: str = "autoguidance"
    export: str = Field(min_length=1, description="Folder of the weaker model's export.")

    @property
    def weaker_export(self) -> str | None:
        return self.export

    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        return pair.worse + scale * (pair.conditional - pair.worse)
