"""v-prediction: noise levels, targets and velocities are those of diffusers' scheduler of CogVideoX."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from training.objectives.v_prediction import VPrediction
from training.sampling.solvers.euler import Euler

# Importing diffusers takes seconds.
pytestmark = pytest.mark.slow


def scheduler_of(objective: VPrediction) -> Any:
    return CogVideoXDDIMScheduler(
        num_train_timesteps=objective.levels,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=objective.snr_shift,
    )


OBJECTIVES = [VPrediction(), VPrediction(snr_shift=1.0), VPrediction(levels=40, beta_start=0.01, beta_end=0.2)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_levels_are_those_of_the_scheduler(objective: VPrediction) -> None:
    signal = scheduler_of(objective).alphas_cumprod.double().sqrt()
    noise = (1 - signal.square()).sqrt()
    times = torch.tensor(objective.times, dtype=torch.float64)
    torch.testing.assert_close(times, noise / (signal + noise), rtol=0, atol=1e-6)
    assert times[-1] == 1
    assert all(early < late for early, late in itertools.pairwise(objective.times))
    # Also of times that are rounded to fp32, as conditions have them.
    assert objective.level(times.float()).tolist() == list(range(objective.levels))
    assert objective.level(torch.tensor([[0.0], [1.0]])).tolist() == [[0], [objective.levels - 1]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_is_that_of_the_scheduler(objective: VPrediction) -> None:
    """Latents, times their scale, and targets; the velocity of the target leads from data to noise."""
    scheduler, rng = scheduler_of(objective), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, objective.levels, 3, generator=rng, dtype=torch.float64)
    levels, time_K1 = torch.arange(objective.levels), torch.tensor(objective.times, dtype=torch.float64)[:, None]
    noisy = objective.corrupt(clean, noise, time_K1)
    expected = scheduler.add_noise(clean, noise, levels)
    torch.testing.assert_close(objective.scale(time_K1) * noisy, expected, rtol=1e-5, atol=1e-5)
    target = objective.training_target(clean, noise, time_K1)
    torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, levels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.velocity(target, noisy, time_K1), noise - clean)
    assert objective.loss_weight(time_K1).eq(1).all()


def test_every_level_is_equally_likely() -> None:
    objective = VPrediction(levels=4)
    assert [objective.time(quantile, 99) for quantile in (0.01, 0.26, 0.49, 0.51, 0.99)] == [
        objective.times[level] for level in (0, 1, 1, 2, 3)
    ]


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_steps_of_euler_are_those_of_ddim(steps: int) -> None:
    """A network that is linear in its input; the number of steps divides that of the levels."""
    objective = VPrediction()
    scheduler = scheduler_of(objective)
    scheduler.set_timesteps(steps)
    start = theirs = torch.randn(7, generator=torch.Generator().manual_seed(1))

    def network(x: Tensor, level: Tensor) -> Tensor:
        return 0.3 * x + 0.001 * level - 0.2

    for level in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, level), level, theirs, return_dict=False)[0]

    def velocity(x: Tensor, time: float) -> Tensor:
        time_tensor = torch.tensor(time)
        prediction = network(objective.scale(time_tensor) * x, objective.level(time_tensor))
        return objective.velocity(prediction, x, time_tensor)

    times = objective.schedule(steps, 999)
    assert objective.level(torch.tensor(times[:-1])).tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(Euler().solve(velocity, start, times), theirs, rtol=1e-5, atol=1e-5)


def test_schedules_of_any_number_of_steps_fall() -> None:
    objective = VPrediction(levels=100)
    for steps in range(1, 101):
        times = objective.schedule(steps, 1)
        assert (len(times), times[0], times[-1]) == (steps + 1, 1.0, 0.0)
        assert all(later < earlier for earlier, later in itertools.pairwise(times))
    with pytest.raises(ValueError, match="101 steps: the objective has 100 noise levels; set steps"):
        objective.schedule(101, 1)
