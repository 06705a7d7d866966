"""Explicit Euler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.sampling.solver import Solver, Velocity, intervals

if TYPE_CHECKING:
    from torch import Tensor


class Euler(Solver):
    """Settings of explicit Euler: x += (t_next - t) v(x, t). It is of first order, and exact on straight paths."""

    name: str = "euler"

    def solve(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
        for time, following in intervals(times):
            x = x + (following - time) * velocity(x, time)
        return x
