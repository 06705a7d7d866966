"""Flow matching: shift and distribution of times, straight paths, and velocities of each kind of prediction."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from training.objectives.flow_matching import FlowMatching, shift_time
from training.sampling.solvers.euler import Euler

OBJECTIVE = FlowMatching()


@pytest.mark.parametrize(
    ("tokens", "shift"), [(1, 1.0), (256, 1.0), (1024, 2.0), (4096, 4.0), (256 * 144, 12.0), (10**7, 12.0)]
)
def test_shift_is_the_square_root_of_tokens_within_bounds(tokens: int, shift: float) -> None:
    assert OBJECTIVE.shift_at(tokens) == pytest.approx(shift)


@given(time=st.floats(0, 1), shift=st.floats(1, 12))
@example(time=0.9999999999999999, shift=1.25)
def test_shifting_scales_the_odds_of_noise(time: float, shift: float) -> None:
    """In another form of the formula, the odds of noise t / (1 - t) grow by the factor a."""
    got = shift_time(time, shift)
    assert time <= got <= 1
    assert got * (1 - time) == pytest.approx(shift * time * (1 - got), abs=1e-9)


def test_times_are_logit_normal() -> None:
    # Quantiles of the standard normal distribution, from a table.
    for quantile, normal in [
        (0.5, 0.0),
        (0.841344746, 1.0),
        (0.158655254, -1.0),
        (0.977249868, 2.0),
        (0.99, 2.326347874),
    ]:
        assert OBJECTIVE.time(quantile, 1) == pytest.approx(1 / (1 + math.exp(-normal)))
        time = FlowMatching(time_mean=0.5, time_std=2.0).time(quantile, 1)
        assert math.log(time / (1 - time)) == pytest.approx(0.5 + 2 * normal)


@given(low=st.floats(1e-12, 1 - 1e-12), high=st.floats(1e-12, 1 - 1e-12), tokens=st.integers(1, 10**6))
def test_times_rise_with_the_quantile(low: float, high: float, tokens: int) -> None:
    low, high = min(low, high), max(low, high)
    assert 0 < OBJECTIVE.time(low, tokens) <= OBJECTIVE.time(high, tokens) < 1


def test_log_odds_of_noise_grow_by_the_log_of_the_shift() -> None:
    small, large = OBJECTIVE.time(0.3, 256), OBJECTIVE.time(0.3, 4096)
    assert math.log(large / (1 - large)) - math.log(small / (1 - small)) == pytest.approx(math.log(4))


def test_noising_is_a_straight_line_from_data_to_noise() -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert OBJECTIVE.corrupt(clean, noise, torch.tensor(0.0)).equal(clean)
    assert OBJECTIVE.corrupt(clean, noise, torch.tensor(1.0)).equal(noise)
    early, late = (OBJECTIVE.corrupt(clean, noise, torch.tensor(time)) for time in (0.25, 0.75))
    torch.testing.assert_close((late - early) / 0.5, OBJECTIVE.training_target(clean, noise, torch.tensor(0.5)))


def test_target_is_the_velocity_that_removes_the_noise() -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    time = torch.tensor(0.3)
    noisy = OBJECTIVE.corrupt(clean, noise, time)
    velocity = OBJECTIVE.velocity(OBJECTIVE.training_target(clean, noise, time), noisy, time)
    torch.testing.assert_close(noisy - time * velocity, clean)


@pytest.mark.parametrize("time", [0.02, 0.3, 0.5, 0.98])
@pytest.mark.parametrize("target", ["v", "x", "eps"])
def test_velocity_is_the_same_for_every_kind_of_prediction(target: Literal["v", "x", "eps"], time: float) -> None:
    objective = FlowMatching(target=target)
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    time_tensor = torch.tensor(time)
    noisy = objective.corrupt(clean, noise, time_tensor)
    prediction = objective.training_target(clean, noise, time_tensor)
    velocity = objective.velocity(prediction, noisy, time_tensor)
    torch.testing.assert_close(velocity, noise - clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["v", "x", "eps"])
def test_velocities_are_finite_at_both_ends(target: Literal["v", "x", "eps"]) -> None:
    for time in (0.0, 1.0):
        assert FlowMatching(target=target).velocity(torch.ones(3), torch.zeros(3), torch.tensor(time)).isfinite().all()


@pytest.mark.parametrize("target", ["v", "x", "eps"])
def test_sampling_with_a_perfect_model_ends_at_the_data(target: Literal["v", "x", "eps"]) -> None:
    """If all data is one point x, the best prediction is known: x itself, and e = (x_t - (1 - t) x) / t."""
    objective, clean = FlowMatching(target=target), torch.tensor([0.7, -1.2])

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        noise = (x - (1 - time) * clean) / time
        return objective.velocity(objective.training_target(clean, noise, torch.tensor(time)), x, torch.tensor(time))

    end = Euler().solve(velocity, torch.tensor([0.3, 2.0]), objective.schedule(50, 1024))
    # At t = 1 the noise does not determine the data, so the first step of eps has velocity 0. The error stays.
    torch.testing.assert_close(end, clean, atol=0.2 if target == "eps" else 1e-5, rtol=0)


@given(steps=st.integers(1, 200), tokens=st.integers(1, 10**6))
def test_schedules_fall_from_noise_to_data(steps: int, tokens: int) -> None:
    times = OBJECTIVE.schedule(steps, tokens)
    assert len(times) == steps + 1
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("target", ["v", "x", "eps"])
@pytest.mark.parametrize("time", [0.06, 0.5, 0.94])
def test_the_loss_is_the_error_of_the_velocity(target: Literal["v", "x", "eps"], time: float) -> None:
    objective, at = FlowMatching(target=target), torch.tensor(time)
    noisy, right, wrong = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_velocity = (objective.velocity(right, noisy, at) - objective.velocity(wrong, noisy, at)).square()
    torch.testing.assert_close(objective.loss_weight(at) * (right - wrong).square(), of_velocity)
    assert FlowMatching(target=target, loss="target").loss_weight(at) == 1


def test_the_weight_of_the_loss_is_bounded() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert FlowMatching(target="x").loss_weight(ends).tolist() == pytest.approx([400.0, 1.0])
    assert FlowMatching(target="eps").loss_weight(ends).tolist() == pytest.approx([1.0, 400.0])
