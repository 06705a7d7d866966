"""The exponential moving average (EMA) of the weights, in fp32, beside each rank's own weight shards."""

from __future__ import annotations

import torch
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """Return the decay of the update after step `step`, counted from 0: min(decay, (1 + step) / (10 + step)).

    The ramp, which is that of TensorFlow's ExponentialMovingAverage, removes the random initial weights from the
    averages of short runs.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The averages of a list of fp32 tensors. With ZeRO these are one rank's shards, so an update gathers nothing.

    Averages are fp32 because in bf16 an update of 1e-4 of a weight rounds to nothing.
    """

    def __init__(self, shards: list[Tensor], decay: float) -> None:
        assert all(shard.dtype == torch.float32 for shard in shards)
        self.decay = decay
        self.averages = [shard.detach().clone() for shard in shards]

    @torch.no_grad()
    def update(self, shards: list[Tensor], step: int) -> None:
        """Add the weights after step `step`, counted from 0, to the averages."""
        torch._foreach_lerp_(self.averages, shards, 1 - decay_at(step, self.decay))

    @torch.no_grad()
    def restart(self, shards: list[Tensor]) -> None:
        """Set the averages to the weights."""
        torch._foreach_copy_(self.averages, shards)
