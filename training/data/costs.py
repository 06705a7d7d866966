"""Costs of samples: FLOPs of the model's forward pass, or step times that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.arrays import Float64Array, Int64Array
from training.data.step_times import StepTimes

# Shape suffixes: B buckets; 2: a sample without and with its last-frame latent.

MAX_COST = 2**30
"""Cost of the costliest sample without a last-frame latent. Samples a million times as cheap still have a cost of about
1,000, and the costs of a million samples add up far below 2 ** 63."""


@dataclass(frozen=True)
class Work:
    """The work of the model for a sample of a bucket."""

    tokens: int
    """Tokens of the model, after patching."""
    flops: float
    """FLOPs of its forward pass, with a text of the bucket's mean length."""


@dataclass(frozen=True)
class SampleCosts:
    """The work by bucket for a sample without and with its last-frame latent, and measured step times if there are any.

    Both values are the same for images, which have no last-frame latent.
    """

    work: Mapping[str, tuple[Work, Work]]
    times: StepTimes | None = None
    """Measured times that costs follow; None for costs by FLOPs."""

    @classmethod
    def from_tokens(cls, tokens: Mapping[str, tuple[int, int]]) -> SampleCosts:
        """Return costs in proportion to tokens."""
        return cls(
            {
                bucket: (Work(plain, plain), Work(with_last_frame, with_last_frame))
                for bucket, (plain, with_last_frame) in tokens.items()
            }
        )

    def table(self, buckets: Sequence[str]) -> CostTable:
        """Return the costs of buckets by their index in `buckets`."""
        work = [self.work[bucket] for bucket in buckets]
        flops_B2 = np.array([[one.flops for one in both] for both in work], np.float64)
        tokens_B2 = np.array([[one.tokens for one in both] for both in work], np.float64)
        return CostTable(_to_integers(flops_B2), tokens_B2, self.times)


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs as integers, scaled so that the costliest sample without a last-frame latent has `MAX_COST`."""

    formula_costs_B2: Int64Array
    """Costs in proportion to FLOPs."""
    tokens_B2: Float64Array
    times: StepTimes | None

    def at(self, step: int) -> Int64Array:
        """Return the costs `[B, 2]` in global step `step`: by measured times if they have a fit, else by FLOPs."""
        fit = self.times.at(step) if self.times else None
        if fit is None:
            return self.formula_costs_B2
        return _to_integers(fit.per_token_s * self.tokens_B2 + fit.per_square_s * self.tokens_B2**2)


def _to_integers(costs_B2: Float64Array) -> Int64Array:
    """Return costs scaled to `MAX_COST` and rounded to integers of at least 1."""
    return np.maximum(1, np.rint(costs_B2 * (MAX_COST / (float(costs_B2[:, 0].max()) or 1.0)))).astype(np.int64)
