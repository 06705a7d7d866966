"""Guidance that the model applies itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.sampling.guidance import Guidance, VelocityPair

if TYPE_CHECKING:
    from torch import Tensor


class Embedded(Guidance):
    """Settings of guidance by a model that is told the scale, such as HunyuanVideo, because it was distilled from a
    guided one (Meng et al. 2023, "On distillation of guided diffusion models").

    It costs one prediction a step. `interval` is that of the classifier-free guidance.
    """

    name: str = "embedded"
    true_cfg: float = Field(
        1.0,
        ge=0,
        description="Scale of classifier-free guidance besides, `true_cfg_scale` of HunyuanVideoPipeline; 1 is none.",
    )

    def embedded(self, scale: float) -> float:
        return scale

    def is_on(self, scale: float) -> bool:
        return self.true_cfg != 1

    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        return pair.worse + self.true_cfg * (pair.conditional - pair.worse)
