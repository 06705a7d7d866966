"""Classifier-free guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.sampling.guidance import Guidance, VelocityPair

if TYPE_CHECKING:
    from torch import Tensor


class Plain(Guidance):
    """Settings of classifier-free guidance (Ho and Salimans 2022): u + g (c - u)."""

    name: str = "plain"

    def guide(self, pair: VelocityPair, scale: float) -> Tensor:
        return pair.worse + scale * (pair.conditional - pair.worse)
