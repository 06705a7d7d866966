"""Costs of samples: the formula against a count by hand, and what is fitted to times."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.costs import MAX_COST, SampleCosts, Work
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.data.step_times import EVERY_STEPS, LEAD_STEPS, MIN_STEPS, Fit, StepTimes, least_squares, moments

TRUE = Fit(start_s=0.02, per_token_s=3e-6, per_square_s=4e-10)


def seconds_of(fit: Fit, n_micro: int, tokens: list[int]) -> float:
    return fit.start_s * n_micro + fit.per_token_s * sum(tokens) + fit.per_square_s * sum(count**2 for count in tokens)


def sums_of(fit: Fit, seed: int, steps: int, noise: float = 0.0) -> list[float]:
    chance = np.random.default_rng(seed)
    total = np.zeros(10)
    for _ in range(steps):
        tokens = chance.choice([256, 2304, 9216, 38016, 76032], chance.integers(1, 12)).tolist()
        n_micro = int(chance.integers(1, 4))
        total += moments(n_micro, tokens, seconds_of(fit, n_micro, tokens) * (1 + noise * chance.standard_normal()))
    return total.tolist()


def test_costs_are_whole_numbers_in_proportion() -> None:
    work = {
        "long": (Work(9, 3e15), Work(10, 3.6e15)),
        "image": (Work(1, 1e12), Work(1, 1e12)),
        "short": (Work(5, 1.5e15), Work(6, 2e15)),
    }
    costs = SampleCosts(work).table(["image", "long", "short"]).at(0)
    assert costs.tolist() == [
        [round(MAX_COST / 3000)] * 2,
        [MAX_COST, round(MAX_COST * 1.2)],
        [MAX_COST // 2, round(MAX_COST / 1.5)],
    ]
    assert SampleCosts.from_tokens({"a": (2, 3), "b": (1, 1)}).table(["b", "a"]).at(0).tolist() == [
        [MAX_COST // 2] * 2,
        [MAX_COST, MAX_COST * 3 // 2],
    ]


def test_a_fit_recovers_what_times_were_made_of() -> None:
    fit = least_squares(sums_of(TRUE, 0, 40))
    assert fit is not None
    assert (fit.start_s, fit.per_token_s, fit.per_square_s) == pytest.approx(
        (TRUE.start_s, TRUE.per_token_s, TRUE.per_square_s), rel=1e-6
    )
    noisy = least_squares(sums_of(TRUE, 1, 1000, noise=0.05))
    assert noisy is not None
    assert (noisy.per_token_s, noisy.per_square_s) == pytest.approx((TRUE.per_token_s, TRUE.per_square_s), rel=0.05)


@pytest.mark.parametrize("negative", [Fit(-0.05, 3e-6, 4e-10), Fit(0.02, -3e-6, 4e-10), Fit(0.02, 3e-6, -1e-11)])
def test_no_term_is_negative_and_the_others_are_the_best_without_it(negative: Fit) -> None:
    """Against a search: no point near the answer, and none with other terms 0, has a smaller error."""
    sums = sums_of(negative, 2, 60)
    fit = least_squares(sums)
    assert fit is not None
    found = np.array([fit.start_s, fit.per_token_s, fit.per_square_s])
    assert (found >= 0).all()
    assert (found == 0).any()
    matrix = np.zeros((4, 4))
    matrix[np.triu_indices(4)] = sums
    matrix = matrix + np.triu(matrix, 1).T

    def error(terms: np.ndarray) -> float:
        row = np.append(terms, -1.0)
        return float(row @ matrix @ row)

    scale = np.abs([negative.start_s, negative.per_token_s, negative.per_square_s])
    chance = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(300):
            assert error(np.maximum(0, found + size * scale * chance.standard_normal(3))) >= error(found) * (1 - 1e-9)


def test_measurements_that_are_all_alike_tell_nothing() -> None:
    assert least_squares((50 * np.array(moments(1, [2304, 2304], 0.5))).tolist()) is None
    assert least_squares([0.0] * 10) is None


def test_sums_over_ranks_and_steps_do_not_depend_on_who_measured() -> None:
    rows = [(1, [256, 512], 0.1), (2, [9216], 0.4), (1, [2304] * 3, 0.3)]
    together = np.sum([moments(*row) for row in rows], axis=0)
    assert np.allclose(together, np.sum([moments(*row) for row in reversed(rows)], axis=0), rtol=1e-15)


def test_a_fit_holds_from_a_step_that_is_known_ahead() -> None:
    times = StepTimes()
    for step in range(EVERY_STEPS):
        # A loader deals steps ahead of training; what it was told stays true.
        assert times.at(step + LEAD_STEPS - 1) is None or step + LEAD_STEPS > EVERY_STEPS
        assert times.at(step) is None
        times.add(step, sums_of(TRUE, step, 1))
    fit = times.at(EVERY_STEPS)
    assert fit is not None
    assert fit.per_token_s == pytest.approx(TRUE.per_token_s, rel=1e-3)
    assert times.at(EVERY_STEPS - 1) is None  # steps that may still be in hand are dealt as before


def test_too_few_steps_give_no_fit() -> None:
    times = StepTimes(start_step=EVERY_STEPS - MIN_STEPS - LEAD_STEPS + 2)
    for step in range(EVERY_STEPS - MIN_STEPS - LEAD_STEPS + 2, EVERY_STEPS):
        times.add(step, sums_of(TRUE, step, 1))
    assert times.at(EVERY_STEPS) is None


@given(st.integers(0, 450), st.integers(0, 250))
def test_resumed_from_its_state_it_goes_on_as_undisturbed(stop: int, more: int) -> None:
    measured = [sums_of(TRUE, 7 * step % 13, 1, noise=0.1) for step in range(13)]
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


@given(st.integers(1, 8), st.integers(0, 30))
def test_a_fit_changes_who_computes_what_and_never_which(world_size: int, index: int) -> None:
    tokens = [64, 256, 1024, 4096] * 30
    buckets = [f"{count}x8x1" for count in tokens]
    times = StepTimes()
    for step in range(EVERY_STEPS):
        times.add(step, sums_of(TRUE, step, 1))
    plans = []
    for given_times in (None, times):
        costs = SampleCosts(
            {bucket: (Work(count, count),) * 2 for bucket, count in zip(buckets, tokens, strict=True)}, given_times
        )
        plans.append(
            Planner(buckets, tokens, PlanSettings(tokens_per_step=20_000, policy="pack"), 0, costs).step(
                EVERY_STEPS + index
            )
        )
    assert plans[0].samples.tolist() == plans[1].samples.tolist()
    assert plans[0].dealt.costs.tolist() != plans[1].dealt.costs.tolist()
    for plan in plans:
        counted = [
            sample
            for rank in range(world_size)
            for micro in share(plan, rank, world_size)
            if micro.weights[0]
            for sample in micro.samples
        ]
        assert sorted(counted) == sorted(plan.samples.tolist())
