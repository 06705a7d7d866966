"""The loss of a step by noise level, by bucket, and of images and videos, which a mean over all samples would hide.

Each part is a sum over samples. So the parts of all ranks are one sum of a vector, whose length depends on the data set
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from training.data.buckets import parse_bucket_name

# Shape suffixes: B samples, P parts of the loss.

SIDE_STEP = 32
"""Pixels to which sides are rounded. Buckets of one size differ by less, so a record is short whatever
their aspects."""
N_TIMES = 10
"""Equal intervals of noise levels."""


class LossParts:
    """The parts of the loss over a data set with these buckets.

    They are all samples, `_time/0.3` (noise levels from 0.3 to 0.4), `_bucket/256px_33f`, `_kind/image` and
    `_kind/video`.
    """

    def __init__(self, buckets: Iterable[str]) -> None:
        times = [f"_time/0.{index}" for index in range(N_TIMES)]
        self._own = {name: _bucket_parts(name) for name in set(buckets)}
        self.names = ["", *sorted({*times, *(part for parts in self._own.values() for part in parts)})]
        """Names of the parts, to be appended to the name of the loss."""
        self._index = {name: index for index, name in enumerate(self.names)}

    def members(self, buckets: Sequence[str], times: Sequence[float]) -> Tensor:
        """Return float32 `[P, B]`: 1 where a sample of this bucket and noise level belongs to a part, else 0."""
        members_PB = torch.zeros(len(self.names), len(buckets))
        for sample, (bucket, time) in enumerate(zip(buckets, times, strict=True)):
            time_part = f"_time/0.{min(int(time * N_TIMES), N_TIMES - 1)}"
            for part in ("", time_part, *self._own[bucket]):
                members_PB[self._index[part], sample] = 1
        return members_PB

    def record(self, sums_P2: Sequence[Sequence[float]], name: str) -> dict[str, float]:
        """Return the mean of each part that has samples, from the `weighted_sums` of all samples.

        `name` is that of the loss.
        """
        return {
            name + part: total / weight for part, (total, weight) in zip(self.names, sums_P2, strict=True) if weight
        }


def weighted_sums(members_PB: Tensor, losses_B: Tensor, weights_B: Tensor) -> Tensor:
    """Return float64 `[P, 2]`: the sums of weight * loss and of weight over the samples of each part.

    Samples of weight 0 do not count, whatever their loss.
    """
    weights_B = weights_B.to(torch.float64)
    # A factor of 0 would let NaN through.
    weighted_B = torch.where(weights_B > 0, losses_B.to(torch.float64) * weights_B, 0.0)
    # Sums over rows, not a product of matrices: there an infinite loss would make other parts NaN.
    members_PB1 = members_PB[:, :, None] > 0
    return torch.where(members_PB1, torch.stack((weighted_B, weights_B), dim=1), 0.0).sum(dim=1)


def _bucket_parts(bucket: str) -> tuple[str, str]:
    width, height, frames = parse_bucket_name(bucket)
    side = max(1, round(math.sqrt(width * height) / SIDE_STEP)) * SIDE_STEP
    return f"_bucket/{side}px_{frames}f", f"_kind/{'image' if frames == 1 else 'video'}"
