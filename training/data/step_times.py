"""How long micro-steps really take: seconds of the way forward, in which no rank waits, fitted to tokens, so that dealing can follow the machine.

A fit decides which worker computes what, never which samples a step has.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EVERY_STEPS = 100
"""Fits take effect at steps that are multiples of this."""
LEAD_STEPS = 16
"""So many steps before, each is final: loaders deal steps ahead of time, and all ranks must deal a step alike."""
WINDOW_STEPS = 1000
"""A step's weight in the fit falls by 1 / e in so many steps."""
MIN_STEPS = 32
"""Before so many steps are measured there is no fit."""
MAX_CONDITION = 1e6
"""Of the normal matrix with a diagonal of 1; above it the steps are too much alike to tell the terms apart."""

PAIRS = tuple(itertools.combinations_with_replacement(range(4), 2))
"""Places of the moments in the symmetric 4 x 4 matrix of (micro-steps, sum of tokens, sum of their squares, seconds)."""


@dataclass(frozen=True)
class Fit:
    """Seconds of a micro-step's way forward: `start_s` + `per_token_s` * sum(S) + `per_square_s` * sum(S²) over samples of S tokens, none below 0."""

    start_s: float
    per_token_s: float
    per_square_s: float


def moments(n_micro: int, tokens: Sequence[int], seconds: float) -> list[float]:
    """One rank's measurement: `n_micro` micro-steps, whose samples have `tokens`, took `seconds`. Sums over ranks and steps are all a fit needs."""
    row = float(n_micro), float(sum(tokens)), float(sum(count**2 for count in tokens)), seconds
    return [row[i] * row[j] for i, j in PAIRS]


def least_squares(sums: Sequence[float]) -> Fit | None:
    """The fit with the least squared error among those without a negative term; None where the measurements cannot tell.

    Three terms leave eight sets of those that are not 0: the best of all that solve to positive values is the exact answer.
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
    """Measurements of a run and the fits made of them, alike on all ranks as long as all add the same sums."""

    def __init__(self, start_step: int = 0) -> None:
        self._sums: NDArray[np.float64] = np.zeros(len(PAIRS))
        self._steps = 0
        self._final_until = _next_change(start_step + LEAD_STEPS)
        self._fits: list[tuple[int, Fit | None]] = [(0, None)]

    def add(self, step: int, sums: Sequence[float]) -> None:
        """Take in the `moments` of step `step`, summed over ranks; steps come in order."""
        self._sums = self._sums * (1 - 1 / WINDOW_STEPS) + np.asarray(sums)
        self._steps += 1
        if step + LEAD_STEPS >= self._final_until:
            fit = least_squares(self._sums.tolist()) if self._steps >= MIN_STEPS else None
            # The last one still holds for steps that are being dealt now.
            self._fits = [self._fits[-1], (self._final_until, fit)]
            self._final_until += EVERY_STEPS

    def at(self, step: int) -> Fit | None:
        """The fit that step `step` is dealt by; None for the formula."""
        assert step < self._final_until, (step, self._final_until)
        return next(fit for first, fit in reversed(self._fits) if first <= step)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it; floats keep every bit there."""
        fits = [[first, None if fit is None else asdict(fit)] for first, fit in self._fits]
        return {"sums": self._sums.tolist(), "steps": self._steps, "final_until": self._final_until, "fits": fits}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StepTimes:
        """What `state` was asked of."""
        times = cls()
        times._sums, times._steps, times._final_until = (
            np.asarray(state["sums"], np.float64),
            state["steps"],
            state["final_until"],
        )
        times._fits = [(first, None if fit is None else Fit(**fit)) for first, fit in state["fits"]]
        return times


def _next_change(step: int) -> int:
    return (step // EVERY_STEPS + 1) * EVERY_STEPS
