"""What samples cost a worker: the operations of the model's forward pass, or step times that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.step_times import StepTimes

# Shape suffixes: B buckets; 2: a sample as it is, and with its last picture as one more latent frame.

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

DEAREST = 2**30
"""Cost of the dearest sample: fine enough for samples a million times as cheap, and a million of them add up far below 2 ** 63."""


@dataclass(frozen=True)
class Work:
    """What the model does for a sample of a bucket."""

    tokens: int
    """That it makes of the sample."""
    flops: float
    """Of its way forward, with a text of the bucket's mean length."""


@dataclass(frozen=True)
class SampleCosts:
    """Work by bucket, for a sample as it is and with its last picture; the same twice for an image, which has none."""

    work: Mapping[str, tuple[Work, Work]]
    times: StepTimes | None = None
    """Where dealing follows measured times; None keeps to the formula."""

    @classmethod
    def of_tokens(cls, tokens: Mapping[str, tuple[int, int]]) -> SampleCosts:
        """Costs in proportion to tokens."""
        return cls(
            {bucket: (Work(plain, plain), Work(with_tail, with_tail)) for bucket, (plain, with_tail) in tokens.items()}
        )

    def table(self, buckets: Sequence[str]) -> CostTable:
        """For buckets by their numbers."""
        work = [self.work[bucket] for bucket in buckets]
        flops_B2 = np.array([[one.flops for one in both] for both in work], np.float64)
        return CostTable(
            _whole(flops_B2), np.array([[one.tokens for one in both] for both in work], np.float64), self.times
        )


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs as whole numbers, the dearest sample without a last picture `DEAREST`: only their ratios matter."""

    by_formula_B2: Int64s
    tokens_B2: Float64s
    times: StepTimes | None

    def at(self, step: int) -> Int64s:
        """`[B, 2]`, in global step `step`: by measured times wherever those have a fit."""
        fit = self.times.at(step) if self.times else None
        if fit is None:
            return self.by_formula_B2
        return _whole(fit.per_token_s * self.tokens_B2 + fit.per_square_s * self.tokens_B2**2)


def _whole(costs_B2: Float64s) -> Int64s:
    """In whole numbers, none below 1."""
    return np.maximum(1, np.rint(costs_B2 * (DEAREST / (float(costs_B2[:, 0].max()) or 1.0)))).astype(np.int64)
