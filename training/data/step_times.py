"""Measured times of micro-steps, fitted to the tokens of their samples, so that assignment can follow the machine.

Only forward passes are timed, in which no rank waits for another. A fit decides which rank computes which samples,
never which samples a step has.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.arrays import Float64Array

FIT_EVERY_STEPS = 100
"""Fits take effect at steps that are multiples of this."""
LEAD_STEPS = 16
"""Steps between the end of the measurements of a fit and its first use: loaders plan steps ahead, and all ranks must
assign a step by the same fit."""
WINDOW_STEPS = 1000
"""Steps in which the weight of a measurement falls to 1 / e."""
MIN_STEPS = 32
"""Smallest number of measured steps for a fit."""
MAX_CONDITION = 1e6
"""Largest condition number of the normal matrix, scaled to a diagonal of 1; above it, steps are too much alike to tell
the terms apart."""

PAIRS = tuple(itertools.combinations_with_replacement(range(4), 2))
"""Index of each moment in the symmetric 4 x 4 matrix of (micro-steps, sum of tokens, sum of their squares, seconds)."""


@dataclass(frozen=True)
class Fit:
    """Coefficients of the seconds of a micro-step's forward pass, none negative, over samples of S tokens.

    Seconds are `start_s` + `per_token_s` * sum(S) + `per_square_s` * sum(S²).
    """

    start_s: float
    per_token_s: float
    per_square_s: float


def moments(n_micro_steps: int, tokens: Sequence[int], seconds: float) -> list[float]:
    """Return the moments of one measurement of one rank: micro-steps with samples of `tokens` took `seconds` together.

    A fit needs only the sum of these over ranks and steps.
    """
    row = float(n_micro_steps), float(sum(tokens)), float(sum(count**2 for count in tokens)), seconds
    return [row[i] * row[j] for i, j in PAIRS]


def least_squares(sums: Sequence[float]) -> Fit | None:
    """Return the fit with the least squared error among those without a negative term, or None if none can be found.

    Three terms leave eight sets of terms that are not 0. The best of all sets that solve to positive values is exact.
    """
    matrix = np.zeros((4, 4))
    for (i, j), value in zip(PAIRS, sums, strict=True):
        matrix[i, j] = matrix[j, i] = value
    scale = np.sqrt(np.diag(matrix))
    if not scale.all():
        return None
    matrix /= np.outer(scale, scale)
    normal, right = matrix[:3, :3], matrix[:3, 3]
    if np.linalg.cond(normal) > MAX_CONDITION:
        return None
    best, terms = 0.0, np.zeros(3)
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            solved = np.linalg.solve(normal[np.ix_(chosen, chosen)], right[list(chosen)])
            # The squared error falls by this much from that of all zeros.
            gain = float(solved @ right[list(chosen)])
            if (solved >= 0).all() and gain > best:
                best, terms = gain, np.zeros(3)
                terms[list(chosen)] = solved
    start_s, per_token_s, per_square_s = (terms * scale[3] / scale[:3]).tolist()
    return Fit(start_s, per_token_s, per_square_s) if per_token_s + per_square_s > 0 else None


class StepTimes:
    """The measurements of a run and their fits, the same on all ranks if all ranks add the same sums."""

    def __init__(self, start_step: int = 0) -> None:
        self._sums: Float64Array = np.zeros(len(PAIRS))
        self._steps = 0
        self._final_until = _next_fit(start_step + LEAD_STEPS)
        self._fits: list[tuple[int, Fit | None]] = [(0, None)]

    def add(self, step: int, sums: Sequence[float]) -> None:
        """Add the `moments` of step `step`, summed over ranks; steps come in order."""
        self._sums = self._sums * (1 - 1 / WINDOW_STEPS) + np.asarray(sums)
        self._steps += 1
        if step + LEAD_STEPS >= self._final_until:
            fit = least_squares(self._sums.tolist()) if self._steps >= MIN_STEPS else None
            # The last fit still holds for steps that are being assigned now.
            self._fits = [self._fits[-1], (self._final_until, fit)]
            self._final_until += FIT_EVERY_STEPS

    def at(self, step: int) -> Fit | None:
        """Return the fit that the samples of step `step` are assigned by; None for the formula."""
        assert step < self._final_until, (step, self._final_until)
        return next(fit for first, fit in reversed(self._fits) if first <= step)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON can hold it, where floats keep every bit."""
        fits = [[first, None if fit is None else asdict(fit)] for first, fit in self._fits]
        return {"sums": self._sums.tolist(), "steps": self._steps, "final_until": self._final_until, "fits": fits}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StepTimes:
        """Return the measurements whose `state` this is."""
        times = cls()
        times._sums = np.asarray(state["sums"], np.float64)
        times._steps = state["steps"]
        times._final_until = state["final_until"]
        times._fits = [(first, None if fit is None else Fit(**fit)) for first, fit in state["fits"]]
        return times


def _next_fit(step: int) -> int:
    return (step // FIT_EVERY_STEPS + 1) * FIT_EVERY_STEPS
