"""Flow matching: its formulae, the distribution of its times, and that they invert."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.objectives.flow_matching import FlowMatching, shifted

OBJECTIVE = FlowMatching()


@pytest.mark.parametrize(("tokens", "shift"), [(1, 1.0), (256, 1.0), (1024, 2.0), (4096, 4.0), (256 * 144, 12.0), (10**7, 12.0)])
def test_shift_follows_the_square_root_of_tokens_within_bounds(tokens: int, shift: float) -> None:
    assert OBJECTIVE.shift(tokens) == pytest.approx(shift)


@given(time=st.floats(0, 1), shift=st.floats(1, 12))
def test_shifting_equals_scaling_the_noise_to_signal_ratio(time: float, shift: float) -> None:
    """An independent form: the odds of noise to data t / (1 - t) grow by the factor a."""
    got = shifted(time, shift)
    assert time <= got <= 1
    assert got * (1 - time) == pytest.approx(shift * time * (1 - got), abs=1e-9)


def test_times_are_logit_normal() -> None:
    chance = torch.Generator().manual_seed(0)
    times = [OBJECTIVE.draw_time(chance, 1) for _ in range(4000)]
    logits = [math.log(time / (1 - time)) for time in times]
    assert statistics.mean(logits) == pytest.approx(0.0, abs=0.05)
    assert statistics.stdev(logits) == pytest.approx(1.0, abs=0.05)


def test_times_of_larger_pictures_are_noisier_by_the_logarithm_of_the_shift() -> None:
    small = OBJECTIVE.draw_time(torch.Generator().manual_seed(3), 256)
    large = OBJECTIVE.draw_time(torch.Generator().manual_seed(3), 4096)
    assert math.log(large / (1 - large)) - math.log(small / (1 - small)) == pytest.approx(math.log(4))


def test_corruption_runs_from_data_to_noise_in_a_straight_line() -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert OBJECTIVE.corrupt(clean, noise, torch.tensor(0.0)).equal(clean)
    assert OBJECTIVE.corrupt(clean, noise, torch.tensor(1.0)).equal(noise)
    early, late = (OBJECTIVE.corrupt(clean, noise, torch.tensor(time)) for time in (0.25, 0.75))
    torch.testing.assert_close((late - early) / 0.5, OBJECTIVE.target(clean, noise, torch.tensor(0.5)))


def test_target_is_the_velocity_that_removes_the_noise() -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    time = torch.tensor(0.3)
    noisy = OBJECTIVE.corrupt(clean, noise, time)
    velocity = OBJECTIVE.velocity(OBJECTIVE.target(clean, noise, time), noisy, time)
    torch.testing.assert_close(noisy - time * velocity, clean)


@given(steps=st.integers(1, 200), tokens=st.integers(1, 10**6))
def test_schedules_fall_from_noise_to_data(steps: int, tokens: int) -> None:
    times = OBJECTIVE.schedule(steps, tokens)
    assert len(times) == steps + 1
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(times))
