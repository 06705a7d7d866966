"""Tests of the costs of samples, by formula and by measured times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.step_times import FIT, moments_of
from training.data.costs import MAX_COST, SampleCosts, Work
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.data.step_times import FIT_EVERY_STEPS, StepTimes


def test_costs_are_integers_in_proportion() -> None:
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


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(0, 30))
def test_measured_times_change_ranks_but_never_steps(world_size: int, index: int) -> None:
    tokens = [64, 256, 1024, 4096] * 30
    buckets = [f"{count}x8x1" for count in tokens]
    times = StepTimes()
    for step in range(FIT_EVERY_STEPS):
        times.add(step, moments_of(FIT, step, 1))
    work = {bucket: (Work(count, count),) * 2 for bucket, count in zip(buckets, tokens, strict=True)}
    settings = PlanSettings(tokens_per_step=20_000, policy="pack")
    by_formula, by_times = (
        Planner(buckets, tokens, settings, 0, SampleCosts(work, measured)).step(FIT_EVERY_STEPS + index)
        for measured in (None, times)
    )
    assert by_formula.rows.tolist() == by_times.rows.tolist()
    assert by_formula.workload.costs.tolist() != by_times.workload.costs.tolist()
    for step in (by_formula, by_times):
        counted = [
            row
            for rank in range(world_size)
            for micro_batch in rank_micro_batches(step, rank, world_size)
            if micro_batch.weights[0]
            for row in micro_batch.rows
        ]
        assert sorted(counted) == sorted(step.rows.tolist())
