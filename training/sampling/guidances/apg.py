"""Adaptive projected guidance: no push along the prediction itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.sampling.guidance import Guidance, VelocityPair

if TYPE_CHECKING:
    from torch import Tensor


class Apg(Guidance):
    """Settings of adaptive projected guidance (Sadat et al. 2024, "Eliminating oversaturation and artifacts of high
    guidance scales in diffusion models").

    The difference c - u is split into a part along the predicted clean latents x - t c and a part orthogonal to them.
    Only the latter is amplified in full, since the former raises saturation and contrast. The paper's momentum and
    threshold are left out: momentum would make guidance depend on the solver's order of evaluations.
    """

    name: str = "apg"
    parallel: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the difference along the predicted clean latents that is kept; 1 is plain guidance.",
    )

    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        clean = pair.noisy - pair.time * pair.conditional
        difference = pair.conditional - pair.worse
        along = (difference * clean).sum() / clean.square().sum().clamp_min(1e-12) * clean
        return pair.conditional + (scale - 1) * (difference - (1 - self.parallel) * along)
