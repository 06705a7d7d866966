from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.plan import GlobalStep, Planner, PlanSettings, share

TOKENS = {"64x64x17": 320, "64x64x1": 64, "80x48x9": 180, "128x128x33": 2304}
BUCKETS = st.lists(st.sampled_from(list(TOKENS)), min_size=1, max_size=120)
BUDGET = st.integers(1, 6000)
LIMIT = st.none() | st.integers(max(TOKENS.values()), 8000)
SEED = st.integers(0, 2**32)


def planner(buckets: list[str], budget: int = 1000, limit: int | None = None, seed: int = 0) -> Planner:
    return Planner(buckets, [TOKENS[bucket] for bucket in buckets], PlanSettings(tokens_per_step=budget, max_tokens_per_micro=limit), seed)


def epoch_of(plan: Planner, epoch: int) -> list[GlobalStep]:
    return [plan.step(epoch * plan.steps_per_epoch + index) for index in range(plan.steps_per_epoch)]


@given(BUCKETS, BUDGET, LIMIT, SEED)
def test_every_sample_is_in_exactly_one_step_of_each_epoch(buckets: list[str], budget: int, limit: int | None, seed: int) -> None:
    plan = planner(buckets, budget, limit, seed)
    for epoch in range(3):
        steps = epoch_of(plan, epoch)
        assert {step.epoch for step in steps} == {epoch}
        assert sorted(sample for step in steps for sample in step.samples) == list(range(len(buckets)))


@given(BUCKETS, BUDGET, SEED)
def test_a_step_is_of_one_bucket_and_within_its_budget(buckets: list[str], budget: int, seed: int) -> None:
    plan = planner(buckets, budget, None, seed)
    smaller: Counter[str] = Counter()
    for step in epoch_of(plan, 0):
        assert {buckets[sample] for sample in step.samples} == {step.bucket}
        full = max(1, budget // TOKENS[step.bucket])
        assert 1 <= len(step.samples) <= full
        smaller[step.bucket] += len(step.samples) < full
    assert max(smaller.values()) <= 1  # only what is left over of a bucket


@given(BUCKETS, BUDGET, LIMIT, SEED, st.integers(1, 9), st.integers(0, 500))
def test_shares_of_any_number_of_workers_make_up_the_step(
    buckets: list[str], budget: int, limit: int | None, seed: int, world_size: int, index: int
) -> None:
    step = planner(buckets, budget, limit, seed).step(index)
    shares = [share(step, rank, world_size) for rank in range(world_size)]
    assert len({len(micros) for micros in shares}) == 1
    micros = [micro for micros in shares for micro in micros]
    counted = [sample for micro in micros for sample, weight in zip(micro.samples, micro.weights, strict=True) if weight]
    assert counted == list(step.samples)  # the set and the order do not depend on the number of workers
    assert sum(weight for micro in micros for weight in micro.weights) == len(step.samples)
    for micro in micros:
        assert micro.samples
        assert len(micro.samples) == len(micro.weights)
        assert set(micro.weights) <= {0.0, 1.0}
        assert set(micro.samples) <= set(step.samples)
        if limit is not None:
            assert len(micro.samples) * TOKENS[step.bucket] <= limit
    # No more micro-steps than the largest share needs, and shares that differ by a sample at most.
    sizes = [sum(sum(micro.weights) for micro in micros) for micros in shares]
    assert max(sizes) - min(sizes) <= 1
    assert len(shares[0]) == -(-int(max(sizes)) // step.max_micro_samples)


@given(BUCKETS, BUDGET, SEED, st.permutations(range(20)))
def test_steps_do_not_depend_on_the_order_in_which_they_are_asked_for(buckets: list[str], budget: int, seed: int, order: list[int]) -> None:
    plan, other = planner(buckets, budget, None, seed), planner(buckets, budget, None, seed)
    straight = [plan.step(index) for index in range(20)]
    assert {index: other.step(index) for index in order} == dict(enumerate(straight))


def test_the_weighted_loss_is_the_mean_over_samples_for_any_number_of_workers() -> None:
    buckets = ["64x64x17"] * 23
    losses = np.random.default_rng(0).uniform(size=len(buckets))
    step = planner(buckets, 23 * 320, 2304).step(0)
    for world_size in range(1, 30):
        micros = [micro for rank in range(world_size) for micro in share(step, rank, world_size)]
        total = sum(weight * losses[sample] for micro in micros for sample, weight in zip(micro.samples, micro.weights, strict=True))
        assert total / len(step.samples) == pytest.approx(losses.mean(), rel=1e-12)


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    buckets = ["64x64x1"] * 40 + ["64x64x17"] * 40
    orders = [[step.samples for step in epoch_of(planner(buckets, seed=seed), epoch)] for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({str(order) for order in orders}) == len(orders)


def test_the_order_is_uniform() -> None:
    """Each sample comes first in an epoch about equally often: chi-squared with 9 degrees of freedom, 99.9 % below 27.9."""
    plan = planner(["64x64x17"] * 10, budget=1)
    first = Counter(plan.step(10 * epoch).samples[0] for epoch in range(2000))
    assert sum((first[sample] - 200) ** 2 / 200 for sample in range(10)) < 27.9


def test_golden_order() -> None:
    """Resuming depends on this order: it must be the same with other versions of numpy, on other machines, in other processes."""
    plan = planner(["64x64x17"] * 7 + ["64x64x1"] * 4, budget=960, seed=3)
    golden = [(step.bucket, step.samples) for step in epoch_of(plan, 1)]
    code = (
        "from training.data.plan import Planner, PlanSettings\n"
        "p = Planner(['64x64x17'] * 7 + ['64x64x1'] * 4, [320] * 7 + [64] * 4, PlanSettings(tokens_per_step=960), 3)\n"
        "print([(p.step(i).bucket, p.step(i).samples) for i in range(p.steps_per_epoch, 2 * p.steps_per_epoch)])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == str(golden)
    assert golden == [("64x64x17", (6,)), ("64x64x1", (9, 8, 10, 7)), ("64x64x17", (5, 4, 0)), ("64x64x17", (1, 3, 2))]


def test_a_rank_without_a_sample_repeats_one_with_weight_0() -> None:
    step = planner(["64x64x17"] * 2, 640).step(0)
    idle = share(step, 2, 3)
    assert [(micro.samples, micro.weights) for micro in idle] == [((step.samples[0],), (0.0,))]


@pytest.mark.parametrize(
    ("buckets", "tokens", "limit", "message"),
    [
        ([], [], None, "no samples"),
        (["a", "a"], [4, 5], None, r"bucket a: its samples have \[4, 5\] tokens"),
        (["a"], [0], None, "at least 1 token"),
        (["a"], [320], 300, "320 tokens, more than max_tokens_per_micro 300"),
    ],
)
def test_impossible_plans_are_refused(buckets: list[str], tokens: list[int], limit: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(buckets, tokens, PlanSettings(max_tokens_per_micro=limit), 0)


def test_impossible_ranks_and_steps_are_refused() -> None:
    plan = planner(["64x64x17"])
    with pytest.raises(ValueError, match="step -1"):
        plan.step(-1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        share(plan.step(0), 2, 2)


def test_a_large_manifest_is_planned_quickly() -> None:
    """A million samples, and only the current epoch in memory: under a second here."""
    chance = np.random.default_rng(0)
    buckets = chance.choice(list(TOKENS), 1_000_000).tolist()
    plan = planner(buckets, 65536)
    assert sum(len(plan.step(index).samples) for index in range(plan.steps_per_epoch)) == 1_000_000
