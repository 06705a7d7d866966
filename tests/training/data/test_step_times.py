"""Tests of the fit of step times: against known coefficients and a search, and over the steps of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.arrays import Float64Array
from tests.support.step_times import FIT, moments_of
from training.data.step_times import FIT_EVERY_STEPS, LEAD_STEPS, MIN_STEPS, Fit, StepTimes, least_squares, moments


def test_a_fit_recovers_the_coefficients_of_times() -> None:
    fit = least_squares(moments_of(FIT, 0, 40))
    assert fit is not None
    assert (fit.start_s, fit.per_token_s, fit.per_square_s) == pytest.approx(
        (FIT.start_s, FIT.per_token_s, FIT.per_square_s), rel=1e-6
    )
    noisy = least_squares(moments_of(FIT, 1, 1000, noise=0.05))
    assert noisy is not None
    assert (noisy.per_token_s, noisy.per_square_s) == pytest.approx((FIT.per_token_s, FIT.per_square_s), rel=0.05)


@pytest.mark.parametrize("negative", [Fit(-0.05, 3e-6, 4e-10), Fit(0.02, -3e-6, 4e-10), Fit(0.02, 3e-6, -1e-11)])
def test_no_term_is_negative_and_the_fit_is_the_best_such(negative: Fit) -> None:
    """No point near the fit, and none with other terms 0, has a smaller error."""
    sums = moments_of(negative, 2, 60)
    fit = least_squares(sums)
    assert fit is not None
    found = np.array([fit.start_s, fit.per_token_s, fit.per_square_s])
    assert (found >= 0).all()
    assert (found == 0).any()
    matrix = np.zeros((4, 4))
    matrix[np.triu_indices(4)] = sums
    matrix = matrix + np.triu(matrix, 1).T

    def error(terms: Float64Array) -> float:
        row = np.append(terms, -1.0)
        return float(row @ matrix @ row)

    scale = np.abs([negative.start_s, negative.per_token_s, negative.per_square_s])
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(300):
            assert error(np.maximum(0, found + size * scale * rng.standard_normal(3))) >= error(found) * (1 - 1e-9)


def test_measurements_that_are_all_equal_give_no_fit() -> None:
    assert least_squares((50 * np.array(moments(1, [2304, 2304], 0.5))).tolist()) is None
    assert least_squares([0.0] * 10) is None


def test_sums_of_moments_do_not_depend_on_their_order() -> None:
    rows = [(1, [256, 512], 0.1), (2, [9216], 0.4), (1, [2304] * 3, 0.3)]
    forwards = np.sum([moments(*row) for row in rows], axis=0)
    assert np.allclose(forwards, np.sum([moments(*row) for row in reversed(rows)], axis=0), rtol=1e-15)


def test_a_fit_takes_effect_at_a_step_known_in_advance() -> None:
    times = StepTimes()
    for step in range(FIT_EVERY_STEPS):
        # A loader assigns steps ahead of training; the fit it used stays the fit of that step.
        assert times.at(step + LEAD_STEPS - 1) is None or step + LEAD_STEPS > FIT_EVERY_STEPS
        assert times.at(step) is None
        times.add(step, moments_of(FIT, step, 1))
    fit = times.at(FIT_EVERY_STEPS)
    assert fit is not None
    assert fit.per_token_s == pytest.approx(FIT.per_token_s, rel=1e-3)
    assert times.at(FIT_EVERY_STEPS - 1) is None  # steps that may still be in work keep their fit


def test_too_few_steps_give_no_fit() -> None:
    start_step = FIT_EVERY_STEPS - MIN_STEPS - LEAD_STEPS + 2
    times = StepTimes(start_step)
    for step in range(start_step, FIT_EVERY_STEPS):
        times.add(step, moments_of(FIT, step, 1))
    assert times.at(FIT_EVERY_STEPS) is None


@pytest.mark.slow
@given(st.integers(0, 450), st.integers(0, 250))
def test_a_resumed_state_equals_an_uninterrupted_one(stop: int, more: int) -> None:
    measured = [moments_of(FIT, 7 * step % 13, 1, noise=0.1) for step in range(13)]
    whole = StepTimes()
    for step in range(stop):
        whole.add(step, measured[step % 13])
    resumed = StepTimes.from_state(json.loads(json.dumps(whole.state())))
    for step in range(stop, stop + more):
        whole.add(step, measured[step % 13])
        resumed.add(step, measured[step % 13])
    assert resumed.state() == whole.state()
    assert all(resumed.at(stop + more + ahead) == whole.at(stop + more + ahead) for ahead in range(LEAD_STEPS))
    assert len(json.dumps(whole.state())) < 1000
