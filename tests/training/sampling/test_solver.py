"""The solvers: exact where they must be, of their order elsewhere, and step by step those of diffusers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cluster.plugins import build, names
from training.objectives.flow_matching import FlowMatching
from training.sampling.solver import FOLDER, Solver

SOLVERS = names(FOLDER)
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}
"""Order of convergence; the corrector of UniPC-2 raises that of its predictor by 1 (Zhao et al. 2023, theorem 3.1)."""
MEAN, SPREAD = 1.5, 0.4
"""Mean and standard deviation of Gaussian data."""


def solver(name: str) -> Solver:
    return build(FOLDER, Solver, name)


def schedule(steps: int, n_tokens: int = 256) -> tuple[float, ...]:
    return FlowMatching().schedule(steps, n_tokens)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """Return v(x, t) = E[e - x0 | x_t = x] for data N(MEAN, SPREAD^2), in closed form."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    residual = x - (1 - t) * MEAN
    return t / variance * residual - (MEAN + (1 - t) * SPREAD**2 / variance * residual)


def test_all_solvers_have_a_known_order() -> None:
    assert set(SOLVERS) == ORDERS.keys()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_straight_paths_are_exact_in_any_number_of_steps(name: str, steps: int) -> None:
    clean, start = noise(2, 8).unbind(0)
    torch.testing.assert_close(solver(name).solve(lambda x, t: start - clean, start, schedule(steps)), clean)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_linear_field_converges_with_the_solvers_order(name: str) -> None:
    """dx/dt = x from t = 0.9 to 0.1 shrinks x by e^0.8; halving the step divides the error by 2^order."""
    start = torch.ones((), dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        times = [0.9 - 0.8 * step / steps for step in range(steps + 1)]
        errors.append(abs(float(solver(name).solve(lambda x, t: x, start, times)) - math.exp(-0.8)))
    assert [before / after for before, after in pairwise(errors)] == pytest.approx([2 ** ORDERS[name]] * 2, rel=0.12)


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_data_are_reached_point_by_point(name: str) -> None:
    """The exact solution maps noise e to MEAN + SPREAD e."""
    start = noise(1000)
    error = {}
    for steps in (25, 100):
        found = solver(name).solve(gaussian_velocity, start, schedule(steps))
        error[steps] = float((found - (MEAN + SPREAD * start)).abs().mean())
    assert error[100] < error[25] / 3.5
    assert error[100] < 0.01


@pytest.mark.parametrize(
    ("name", "n_tokens"), [("heun", 256), ("dpmpp_2m", 256), ("dpmpp_2m", 2048), ("unipc", 256), ("unipc", 2048)]
)
def test_higher_order_beats_euler_at_equal_evaluations(name: str, n_tokens: int) -> None:
    start = noise(1000)

    def error(name: str, steps: int) -> float:
        found = solver(name).solve(gaussian_velocity, start, schedule(steps, n_tokens))
        return float((found - (MEAN + SPREAD * start)).abs().mean())

    steps = 13 if name == "heun" else 25
    assert solver(name).evaluations(steps) == 25
    assert error(name, steps) < error("euler", 25)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted(name: str) -> None:
    times: list[float] = []

    def velocity(x: Tensor, time: float) -> Tensor:
        times.append(time)
        return x

    solver(name).solve(velocity, torch.zeros(1), schedule(6))
    assert len(times) == solver(name).evaluations(6)
    assert times[0] == 1
    assert min(times) > 0, "models are hardly trained at time 0"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "scheduler"), [("dpmpp_2m", "DPMSolverMultistep"), ("unipc", "UniPCMultistep")])
def test_multistep_solvers_are_those_of_diffusers(name: str, scheduler: str) -> None:
    import diffusers

    times = schedule(9, 1024)
    reference = getattr(diffusers, f"{scheduler}Scheduler")(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, lower_order_final=True
    )
    reference.set_timesteps(9)
    # It starts a little below 1, where its logarithms are finite.
    reference.sigmas = torch.tensor([1 - 1e-6, *times[1:]], dtype=torch.float64)

    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.sin(3 * x) + t * x

    start = noise(1, 5, 10)
    expected = start
    for time, timestep in zip(times, reference.timesteps, strict=False):
        expected = reference.step(velocity(expected, time), timestep, expected).prev_sample
    torch.testing.assert_close(solver(name).solve(velocity, start, times), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_results_are_the_same_bits_every_time(name: str) -> None:
    start = noise(100).float()
    first, second = (solver(name).solve(lambda x, t: torch.sin(x) * t, start, schedule(20)) for _ in range(2))
    assert first.dtype == torch.float32
    assert first.equal(second)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bad", [(), (1.0,), (0.0, 1.0), (1.0, 0.5, 0.5)])
def test_times_that_do_not_fall_are_refused(name: str, bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times must fall strictly"):
        solver(name).solve(lambda x, t: x, torch.zeros(1), bad)
