"""What a sample costs a worker: the arithmetic of the model's forward pass, or step times that were measured."""

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


def forward_flops(tokens_N: ArrayLike, text_N: ArrayLike, layers: int, width: int, mlp_ratio: float) -> Float64s:
    """Floating-point operations `[N]` of a transformer's forward pass over samples of that many tokens and text tokens.

    With S tokens, T text tokens, L layers of width d and feed-forward layers r times as wide, a multiplication and an addition counting as two:
    L ((8 + 4r) d² S + 4 d S² for the queries, keys, values, output and feed-forward layers and self-attention, and 4 d² S + 4 d² T + 4 d S T for
    cross-attention). Self-attention costs as much as the linear layers before it at S = (2 + r) d.
    """
    tokens_N, text_N = np.asarray(tokens_N, np.float64), np.asarray(text_N, np.float64)
    own_N = (8 + 4 * mlp_ratio) * width**2 * tokens_N + 4 * width * tokens_N**2
    across_N = 4 * width**2 * (tokens_N + text_N) + 4 * width * tokens_N * text_N
    return np.asarray(layers * (own_N + across_N), np.float64)


@dataclass(frozen=True, eq=False)
class SampleCosts:
    """Costs of a data set's samples as whole numbers, the dearest of all `DEAREST`: only their ratios matter."""

    by_formula_N: Int64s
    tokens_N: Int64s
    """Tokens that the model makes of each sample."""
    times: StepTimes | None
    """Where dealing follows measured times; None keeps to the formula."""

    @classmethod
    def of_flops(cls, flops: ArrayLike, n_tokens: Sequence[int], times: StepTimes | None = None) -> SampleCosts:
        """By the formula, and by `times` wherever those have a fit."""
        return cls(_whole(np.asarray(flops, np.float64)), np.asarray(n_tokens, np.int64), times)

    @classmethod
    def of_tokens(cls, n_tokens: Sequence[int]) -> SampleCosts:
        """Costs in proportion to tokens."""
        return cls.of_flops(n_tokens, n_tokens)

    def of(self, samples: Int64s, step: int) -> Int64s:
        """Costs of these samples in global step `step`."""
        fit = self.times.at(step) if self.times else None
        if fit is None:
            return self.by_formula_N[samples]
        tokens = self.tokens_N[samples].astype(np.float64)
        return _whole(fit.per_token_s * tokens + fit.per_square_s * tokens**2)


def _whole(costs: Float64s) -> Int64s:
    """In whole numbers, none below 1."""
    return np.maximum(1, np.rint(costs * (DEAREST / (float(costs.max(initial=0)) or 1.0)))).astype(np.int64)
