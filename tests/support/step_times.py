"""Measurements of step times that follow a known fit."""

from __future__ import annotations

import numpy as np

from training.data.step_times import Fit, moments

FIT = Fit(start_s=0.02, per_token_s=3e-6, per_square_s=4e-10)


def seconds_of(fit: Fit, n_micro_steps: int, tokens: list[int]) -> float:
    """Return the seconds of micro-steps whose samples have `tokens` together."""
    squares = sum(count**2 for count in tokens)
    return fit.start_s * n_micro_steps + fit.per_token_s * sum(tokens) + fit.per_square_s * squares


def moments_of(fit: Fit, seed: int, n_steps: int, noise: float = 0.0) -> list[float]:
    """Return the summed moments of random steps that take the seconds of `fit`, with a relative error of `noise`."""
    rng = np.random.default_rng(seed)
    total = np.zeros(10)
    for _ in range(n_steps):
        tokens = rng.choice([256, 2304, 9216, 38016, 76032], rng.integers(1, 12)).tolist()
        n_micro_steps = int(rng.integers(1, 4))
        seconds = seconds_of(fit, n_micro_steps, tokens) * (1 + noise * rng.standard_normal())
        total += moments(n_micro_steps, tokens, seconds)
    return total.tolist()
