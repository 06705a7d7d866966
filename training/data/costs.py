"""Costs of samples, in proportion to the FLOPs of the model's forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.arrays import Float64Array, Int64Array

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
    """The work by bucket for a sample without and with its last-frame latent, and which samples a model can compute
    together.

    Both values are the same for images, which have no last-frame latent.
    """

    work: Mapping[str, tuple[Work, Work]]
    mixes_shapes: bool = True
    """Whether samples of any buckets may share a micro-batch; see `ModelSettings.mixes_shapes`."""

    @classmethod
    def from_tokens(cls, tokens: Mapping[str, tuple[int, int]]) -> SampleCosts:
        """Return costs in proportion to tokens."""
        return cls(
            {
                bucket: (Work(plain, plain), Work(with_last_frame, with_last_frame))
                for bucket, (plain, with_last_frame) in tokens.items()
            }
        )

    def table(self, buckets: Sequence[str]) -> Int64Array:
        """Return the costs `[B, 2]` of buckets by their index in `buckets`, as integers in proportion to FLOPs, scaled
        so that the costliest sample without a last-frame latent has `MAX_COST`.
        """
        return _to_integers(np.array([[one.flops for one in self.work[bucket]] for bucket in buckets], np.float64))


def _to_integers(costs_B2: Float64Array) -> Int64Array:
    """Return costs scaled to `MAX_COST` and rounded to integers of at least 1."""
    return np.maximum(1, np.rint(costs_B2 * (MAX_COST / (float(costs_B2[:, 0].max()) or 1.0)))).astype(np.int64)
