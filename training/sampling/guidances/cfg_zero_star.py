"""CFG-Zero*: guidance with the unconditional velocity scaled to fit the conditional one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.sampling.guidance import Guidance, VelocityPair

if TYPE_CHECKING:
    from torch import Tensor


class CfgZeroStar(Guidance):
    """Settings of CFG-Zero* (Fan et al. 2025, "CFG-Zero*: improved classifier-free guidance for flow matching
    models"): s u + g (c - s u), where s = <c, u> / |u|^2 makes s u the projection of c on u.
    """

    name: str = "cfg_zero_star"
    zero_init: bool = Field(
        True,
        description="Move nothing at noise level 1, where an early model's velocity is worse than none (the paper's "
        "zero-init).",
    )

    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        if self.zero_init and pair.time == 1:
            return pair.conditional.new_zeros(pair.conditional.shape)
        conditional, worse = pair.conditional, pair.worse
        power = worse.square().sum()
        fitted = (conditional * worse).sum() / power.clamp_min(1e-12) * worse
        return fitted + scale * (conditional - fitted)
