from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.costs import SampleCosts, Work
from training.data.assignment import Policy
from training.data.plan import GlobalStep, MicroBatch, Planner, PlanSettings, share
from training.models.dit import DiT

TOKENS = {"64x64x17": 320, "64x64x1": 64, "80x48x9": 180, "128x128x33": 2304}
BUCKETS = st.lists(st.sampled_from(list(TOKENS)), min_size=1, max_size=120)
BUDGET = st.integers(1, 6000)
MODEL = DiT(depth=12, dim=64, heads=4)
LIMIT = st.none() | st.integers(max(TOKENS.values()), 8000)
SEED = st.integers(0, 2**32)
POLICIES: tuple[Policy, ...] = ("same", "bucketed", "pack")
POLICY = st.sampled_from(POLICIES)
FACTOR = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0])


def planner(
    buckets: list[str],
    budget: int = 1000,
    limit: int | None = None,
    seed: int = 0,
    policy: Policy = "pack",
    weights: dict[str, float] | None = None,
) -> Planner:
    settings = PlanSettings(tokens_per_step=budget, max_tokens_per_micro=limit, policy=policy, weights=weights or {})
    tokens = [TOKENS[bucket] for bucket in buckets]
    work = {bucket: Work(count, MODEL.flops(count, 150)) for bucket, count in TOKENS.items()}
    return Planner(buckets, tokens, settings, seed, SampleCosts({bucket: (one, one) for bucket, one in work.items()}))


def epoch_of(plan: Planner, epoch: int) -> list[GlobalStep]:
    first = sum(plan.steps_in(before) for before in range(epoch))
    return [plan.step(first + index) for index in range(plan.steps_in(epoch))]


def views_of(steps: list[GlobalStep]) -> list[tuple[int, int]]:
    return [view for step in steps for view in zip(step.samples.tolist(), step.passes.tolist(), strict=True)]


def shares_of(step: GlobalStep, world_size: int) -> list[list[MicroBatch]]:
    return [share(step, rank, world_size) for rank in range(world_size)]


@given(BUCKETS, BUDGET, LIMIT, SEED, POLICY)
def test_every_sample_is_in_exactly_one_step_of_each_epoch(
    buckets: list[str], budget: int, limit: int | None, seed: int, policy: Policy
) -> None:
    plan = planner(buckets, budget, limit, seed, policy)
    for epoch in range(3):
        steps = epoch_of(plan, epoch)
        assert {step.epoch for step in steps} == {epoch}
        assert all(len(step.samples) for step in steps)
        assert sorted(views_of(steps)) == [(row, epoch) for row in range(len(buckets))]


@given(BUCKETS, BUDGET, SEED)
def test_with_same_a_step_is_of_one_bucket_and_within_its_budget(buckets: list[str], budget: int, seed: int) -> None:
    sizes: dict[str, list[int]] = {}
    for step in epoch_of(planner(buckets, budget, None, seed, "same"), 0):
        (bucket,) = {buckets[sample] for sample in step.samples}
        sizes.setdefault(bucket, []).append(len(step.samples))
    for bucket, found in sizes.items():
        full = max(1, budget // TOKENS[bucket])
        assert max(found) <= full
        assert max(found) - min(found) <= 1  # what is left over is spread, not a small step of its own
        assert len(found) == -(-sum(found) // full)  # and no more steps than are needed


@given(BUCKETS, BUDGET, SEED)
def test_packed_steps_are_equal_but_for_a_sample(buckets: list[str], budget: int, seed: int) -> None:
    plan = planner(buckets, budget, None, seed)
    total = sum(TOKENS[bucket] for bucket in buckets)
    steps = epoch_of(plan, 0)
    assert len(steps) == min(len(buckets), -(-total // budget))
    for step in steps:
        tokens = [TOKENS[buckets[sample]] for sample in step.samples]
        assert len(tokens) == 1 or sum(tokens) < total / len(steps) + max(TOKENS.values())
        assert sum(tokens) < budget + max(TOKENS.values())


@settings(max_examples=300)
@given(BUCKETS, BUDGET, LIMIT, SEED, st.integers(1, 9), st.integers(0, 500), POLICY)
def test_shares_of_any_number_of_workers_make_up_the_step(
    buckets: list[str], budget: int, limit: int | None, seed: int, world_size: int, index: int, policy: Policy
) -> None:
    step = planner(buckets, budget, limit, seed, policy).step(index)
    shares = shares_of(step, world_size)
    assert len({len(micros) for micros in shares}) == 1
    micros = [micro for micros in shares for micro in micros]
    counted = [
        (sample, seen)
        for micro in micros
        for sample, seen, weight in zip(micro.samples, micro.passes, micro.weights, strict=True)
        if weight
    ]
    assert sorted(counted) == sorted(views_of([step]))  # the set does not depend on the number of workers
    assert sum(weight for micro in micros for weight in micro.weights) == len(step.samples)
    for micro in micros:
        assert micro.samples
        assert set(micro.weights) in ({0.0}, {1.0})
        assert set(micro.samples) <= set(step.samples.tolist())
        if limit is not None:
            assert sum(TOKENS[buckets[sample]] for sample in micro.samples) <= limit
        if policy != "pack":
            assert len({buckets[sample] for sample in micro.samples}) == 1
    if policy == "same":
        assert len({buckets[sample] for micro in micros for sample in micro.samples}) == 1
    # No micro-step is without work.
    assert all(any(sum(micros[number].weights) for micros in shares) for number in range(len(shares[0])))


@given(BUCKETS, BUDGET, SEED, POLICY, st.permutations(range(20)))
def test_a_step_is_the_same_whenever_it_is_asked_for(
    buckets: list[str], budget: int, seed: int, policy: Policy, order: list[int]
) -> None:
    """So a run that resumes at any step has the rest of the undisturbed plan."""
    straight = [views_of([step]) for step in map(planner(buckets, budget, None, seed, policy).step, range(20))]
    other = planner(buckets, budget, None, seed, policy)
    assert {index: views_of([other.step(index)]) for index in order} == dict(enumerate(straight))


@given(st.lists(st.sampled_from(list(TOKENS)), min_size=4, max_size=60), BUDGET, SEED, POLICY, FACTOR, FACTOR)
def test_weights_are_exact(
    buckets: list[str], budget: int, seed: int, policy: Policy, images: float, long: float
) -> None:
    """After any number of epochs a sample was seen as often as its weight says, within one; and each time as a pass of its own."""
    buckets = [*buckets, "64x64x1", "64x64x17", "80x48x9"]
    plan = planner(buckets, budget, None, seed, policy, {"*x1": images, "64x64": long})
    exact_images, exact_long = (Fraction(factor).limit_denominator(100) for factor in (images, long))
    expected = {"64x64x1": exact_images * exact_long, "64x64x17": exact_long}
    seen: Counter[int] = Counter()
    for epoch in range(1, 61):
        steps = epoch_of(plan, epoch - 1)
        assert all(len(step.samples) for step in steps)
        views = views_of(steps)
        for row, bucket in enumerate(buckets):
            passes = sorted(number for sample, number in views if sample == row)
            assert passes == list(range(seen[row], seen[row] + len(passes)))
            seen[row] += len(passes)
            due = epoch * expected.get(bucket, Fraction(1))
            assert seen[row] == due if due.denominator == 1 else abs(seen[row] - due) < 1


def test_half_of_a_bucket_is_seen_each_epoch_in_turn() -> None:
    plan = planner(["64x64x17"] * 5 + ["64x64x1"] * 10, policy="pack", weights={"*x1": 0.5})
    images = [{sample for sample, _ in views_of(epoch_of(plan, epoch)) if sample >= 5} for epoch in range(4)]
    assert [len(rows) for rows in images] == [5] * 4
    assert images[0].isdisjoint(images[1])
    assert images[0] == images[2]


def test_the_weighted_loss_is_the_mean_over_samples_for_any_number_of_workers() -> None:
    buckets = ["64x64x17"] * 23 + ["64x64x1"] * 9
    losses = np.random.default_rng(0).uniform(size=len(buckets))
    for policy in POLICIES[1:]:
        step = planner(buckets, 32 * 320, 2304, policy=policy).step(0)
        assert len(step.samples) == len(buckets)
        for world_size in range(1, 40):
            micros = [micro for micros in shares_of(step, world_size) for micro in micros]
            total = sum(
                weight * losses[sample]
                for micro in micros
                for sample, weight in zip(micro.samples, micro.weights, strict=True)
            )
            assert total / len(step.samples) == pytest.approx(losses.mean(), rel=1e-12)


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    buckets = ["64x64x1"] * 40 + ["64x64x17"] * 40
    for policy in POLICIES:
        orders = [
            [step.samples.tolist() for step in epoch_of(planner(buckets, seed=seed, policy=policy), epoch)]
            for seed in (0, 1)
            for epoch in (0, 1)
        ]
        assert len({str(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_is_uniform(policy: Policy) -> None:
    """Each sample comes first in an epoch about equally often: chi-squared with 9 degrees of freedom, 99.9 % below 27.9."""
    plan = planner(["64x64x17"] * 10, budget=1, policy=policy)
    first = Counter(int(plan.step(10 * epoch).samples[0]) for epoch in range(2000))
    assert sum((first[sample] - 200) ** 2 / 200 for sample in range(10)) < 27.9


GOLDEN = {
    "same": "[[[[6]], [[2]]], [[[8, 10]], [[7, 9]]], [[[5]], [[1]]], [[[0, 3]], [[4]]]]",
    "bucketed": "[[[[3, 2]], [[6]]], [[[4]], [[8, 7, 10, 9]]], [[[1, 0]], [[5]]]]",
    "pack": "[[[[10, 5]], [[2]]], [[[3, 6]], [[7, 9, 1]]], [[[4, 8]], [[0]]]]",
}
"""Samples of epoch 1 by step, rank and micro-step."""


@pytest.mark.parametrize("policy", POLICIES)
def test_golden_order(policy: Policy) -> None:
    """Resuming depends on this order: it must be the same with other versions of numpy, on other machines, in other processes."""
    code = (
        "from training.data.plan import Planner, PlanSettings, rank_micro_batches\n"
        f"p = Planner(['64x64x17'] * 7 + ['64x64x1'] * 4, [320] * 7 + [64] * 4, PlanSettings(tokens_per_step=960, policy='{policy}'), 3)\n"
        "n = p.steps_in(0)\n"
        "print([[[list(m.samples) for m in share(p.step(n + i), r, 2)] for r in (0, 1)] for i in range(p.steps_in(1))])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == GOLDEN[policy]
    )


def test_a_rank_without_a_sample_repeats_the_cheapest_with_weight_0() -> None:
    step = planner(["64x64x17", "64x64x1"], 640).step(0)
    (idle,) = [micros for micros in shares_of(step, 3) if not sum(micros[0].weights)]
    assert [(micro.samples, micro.weights) for micro in idle] == [((1,), (0.0,))]


@pytest.mark.parametrize(
    ("buckets", "tokens", "limit", "weights", "message"),
    [
        ([], [], None, {}, "no samples"),
        (["a", "a"], [4, 5], None, {}, r"bucket a: its samples have \[4, 5\] tokens"),
        (["a"], [0], None, {}, "at least 1 token"),
        (["a"], [320], 300, {}, "320 tokens, more than max_tokens_per_micro 300"),
        (["8x8x1", "8x8x5"], [1, 2], None, {"*x9": 2.0}, r"no bucket matches '\*x9'; there are 8x8x1, 8x8x5"),
        (["8x8x1"], [1], None, {"8x8": 0.0}, "without a single sample"),
        (["8x8x1"], [1], None, {"8x8": 0.5}, "without a single sample"),
    ],
)
def test_impossible_plans_are_refused(
    buckets: list[str], tokens: list[int], limit: int | None, weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(buckets, tokens, PlanSettings(max_tokens_per_micro=limit, weights=weights), 0)


def test_a_bucket_of_weight_0_may_be_too_large() -> None:
    plan = Planner(["8x8x1", "8x8x9"], [1, 9], PlanSettings(max_tokens_per_micro=4, weights={"*x9": 0.0}), 0)
    assert views_of(epoch_of(plan, 0)) == [(0, 0)]


def test_impossible_ranks_and_steps_are_refused() -> None:
    plan = planner(["64x64x17"])
    with pytest.raises(ValueError, match="step -1"):
        plan.step(-1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        share(plan.step(0), 2, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_manifest_is_planned_quickly(policy: Policy) -> None:
    """A million samples, and only the current epoch in memory: under a second here."""
    chance = np.random.default_rng(0)
    buckets = chance.choice(list(TOKENS), 1_000_000).tolist()
    plan = Planner(buckets, [TOKENS[bucket] for bucket in buckets], PlanSettings(policy=policy), 0)
    assert sum(len(plan.step(index).samples) for index in range(plan.steps_in(0))) == 1_000_000
