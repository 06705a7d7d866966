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


def forward_flops(tokens_N: ArrayLike, text_N: ArrayLike, layers: int, width: int, mlp_ratio: float) -> Float64s:
    """Floating-point operations `[N]` of a transformer's forward pass over samples of that many tokens and text tokens.

    With S tokens, T text tokens, L layers of width d and feed-forward layers r times as wide, a multiplication and an addition counting as two:
    L ((8 + 4r) d² S + 4 d S² for the queries, keys, values, output and feed-forward layers and self-attention, and 4 d² S + 4 d² T + 4 d S T for
    cross-attention. Self-attention costs as much as the linear layers before it at S = (2 + r) d.
    """
    tokens_N, text_N = np.asarray(tokens_N, np.float64), np.asarray(text_N, np.float64)
    linear_N = (8 + 4 * mlp_ratio) * width**2 * tokens_N + 4 * width * tokens_N**2
    across_N = 4 * width**2 * (tokens_N + text_N) + 4 * width * tokens_N * text_N
    return np.asarray(layers * (linear_N + across_N), np.float64)


@dataclass(frozen=True)
class SampleCosts:
    """Costs of a data set's samples, in any unit: only their ratios matter."""

    flops_N: Float64s
    """By the formula, all above 0."""
    tokens_N: Int64s
    """Tokens that the model makes of each sample."""
    times: StepTimes | None = None
    """Where dealing follows measured times; None keeps to the formula."""

    @classmethod
    def of_tokens(cls, n_tokens: Sequence[int]) -> SampleCosts:
        """Costs in proportion to tokens."""
        tokens_N = np.asarray(n_tokens, np.int64)
        return cls(tokens_N.astype(np.float64), tokens_N)

    def of(self, samples: Int64s, step: int) -> Float64s:
        """Costs of these samples in global step `step`."""
        fit = self.times.at(step) if self.times else None
        if fit is None:
            return self.flops_N[samples]
        tokens = self.tokens_N[samples].astype(np.float64)
        return fit.per_token_s * tokens + fit.per_square_s * tokens**2
