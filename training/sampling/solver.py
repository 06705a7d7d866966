"""The contract of a solver of the sampling equation dx/dt = v(x, t), from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from torch import Tensor

FOLDER = "training.sampling.solvers"

Velocity = Callable[["Tensor", float], "Tensor"]
"""A function that evaluates the model: v(x, t), of the shape of x."""


class Solver(Plugin):
    """Settings of a solver, chosen by `name`. Each file in `training/sampling/solvers/` has one subclass.

    Solvers of higher order take paths x_t = (1 - t) x_0 + t e as given, on which the clean latents are x_t - t v.
    """

    @abc.abstractmethod
    def solve(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
        """Return x at the last of the strictly falling `times`, from x at the first one.

        `times` are those of `ObjectiveSettings.schedule`: one more than there are steps. Raises `ValueError` if they do
        not fall strictly.
        """

    def evaluations(self, steps: int) -> int:
        """Return how often `solve` calls `velocity` in this number of steps that end at time 0."""
        return steps


def intervals(times: Sequence[float]) -> list[tuple[float, float]]:
    """Return start and end of each step. Raises `ValueError` if times do not fall strictly."""
    if len(times) < 2 or any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"times must fall strictly and hold at least a start and an end; got {list(times)[:8]}")
    return list(itertools.pairwise(times))
