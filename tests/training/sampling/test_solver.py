"""The solver: exact where Euler is exact, of first order elsewhere, and right in distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.objectives.flow_matching import FlowMatching
from training.sampling.solver import euler, guided


def schedule(steps: int) -> tuple[float, ...]:
    return FlowMatching().schedule(steps, 256)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_straight_paths_are_exact_in_any_number_of_steps(steps: int) -> None:
    clean, noise = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(euler(lambda x, t: noise - clean, noise, schedule(steps)), clean)


def test_a_linear_field_converges_with_first_order() -> None:
    """dx/dt = x from t = 1 to 0 shrinks x by e; halving the step halves the error."""
    start = torch.ones((), dtype=torch.float64)
    errors = [abs(float(euler(lambda x, t: x, start, schedule(steps))) - math.exp(-1)) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.03)


def test_the_exact_velocity_of_a_gaussian_yields_that_gaussian() -> None:
    """For data N(m, s^2), v(x, t) = E[e - x0 | x_t = x] has a closed form. Samples must have the mean and s of data."""
    mean, spread = 1.5, 0.4

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * spread**2 + t**2
        residual = x - (1 - t) * mean
        return t / variance * residual - (mean + (1 - t) * spread**2 / variance * residual)

    noise = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = euler(velocity, noise, schedule(400))
    assert float(samples.mean()) == pytest.approx(mean, abs=0.01)
    assert float(samples.std()) == pytest.approx(spread, rel=0.02)


def test_results_are_the_same_bits_every_time() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    first, second = (euler(lambda x, t: torch.sin(x) * t, noise, schedule(20)) for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize("bad", [(), (1.0,), (0.0, 1.0), (1.0, 0.5, 0.5)])
def test_times_that_do_not_fall_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times must fall strictly"):
        euler(lambda x, t: x, torch.zeros(1), bad)


def test_guidance_extrapolates() -> None:
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(guided(conditional, unconditional, scale)) for scale in (0, 1, 5)] == [1, 2, 6]
