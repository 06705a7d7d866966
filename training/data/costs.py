"""What a sample costs a worker: the operations of the model's forward pass, or step times that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.data.step_times import StepTimes

# Shape suffixes: N samples.

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

DEAREST = 2**30
"""Cost of the dearest sample: fine enough for samples a million times as cheap, and a million of them add up far below 2 ** 63."""


@dataclass(frozen=True, eq=False)
class SampleCosts:
    """Costs of a data set's samples as whole numbers, the dearest of all `DEAREST`: only their ratios matter."""

    by_formula_N: Int64s
    tokens_N: Int64s
    """Tokens that the model makes of each sample."""
    times: StepTimes | None
    """Where dealing follows measured times; None keeps to the formula."""

    @classmethod
    def of_flops(cls, flops: ArrayLike, n_tokens: Sequence[int], times: StepTimes | None = None, n_rows: int | None = None) -> SampleCosts:
        """By the formula, and by `times` wherever those have a fit.

        `n_rows` says that the dearest is one of the first so many, and that others, which are these with a last picture, may cost more.
        """
        return cls(_whole(np.asarray(flops, np.float64), n_rows), np.asarray(n_tokens, np.int64), times)

    @classmethod
    def of_tokens(cls, n_tokens: Sequence[int], n_rows: int | None = None) -> SampleCosts:
        """Costs in proportion to tokens."""
        return cls.of_flops(n_tokens, n_tokens, n_rows=n_rows)

    def of(self, samples: Int64s, step: int) -> Int64s:
        """Costs of these samples in global step `step`."""
        fit = self.times.at(step) if self.times else None
        if fit is None:
            return self.by_formula_N[samples]
        tokens = self.tokens_N[samples].astype(np.float64)
        return _whole(fit.per_token_s * tokens + fit.per_square_s * tokens**2)


def _whole(costs: Float64s, n_rows: int | None = None) -> Int64s:
    """In whole numbers, none below 1."""
    return np.maximum(1, np.rint(costs * (DEAREST / (float(costs[:n_rows].max(initial=0)) or 1.0)))).astype(np.int64)
