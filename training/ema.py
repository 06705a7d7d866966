"""Exponential moving average of the weights, kept in fp32 beside each rank's own shard."""

from __future__ import annotations

import torch
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after step `step`, counted from 0: min(decay, (1 + n) / (10 + n)).

    The start-up ramp (as in TensorFlow's ExponentialMovingAverage) keeps the random first weights out of short runs.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """Average of a list of fp32 tensors; with ZeRO these are one rank's shards, so nothing is gathered to update it.

    Always fp32: in bf16 an update of 1e-4 of a weight rounds to nothing.
    """

    def __init__(self, shards: list[Tensor], decay: float) -> None:
        assert all(shard.dtype == torch.float32 for shard in shards)
        self.decay = decay
        self.averages = [shard.detach().clone() for shard in shards]

    @torch.no_grad()
    def update(self, shards: list[Tensor], step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        torch._foreach_lerp_(self.averages, shards, 1 - decay_at(step, self.decay))
