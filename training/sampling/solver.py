"""Solver of the sampling equation dx/dt = v(x, t), from noise (t = 1) to data (t = 0), and guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Integrate by explicit Euler over falling times: x += (t_next - t) v(x, t).

    It is exact if the velocity is constant on the path. `times` holds one value more than there are evaluations, as
    `ObjectiveSettings.schedule` returns them. Raises `ValueError` if times do not fall strictly.
    """
    if len(times) < 2 or any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"times must fall strictly and hold at least a start and an end; got {list(times)[:8]}")
    for time, following in itertools.pairwise(times):
        x = x + (following - time) * velocity(x, time)
    return x


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Return the guided prediction u + g (c - u) (Ho and Salimans 2022); guidance 1 is the conditional prediction."""
    return unconditional + guidance * (conditional - unconditional)
