"""Tests of the plan: which samples each step has, and which of them each rank computes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.costs import SampleCosts, Work
from training.data.plan import GlobalStep, MicroBatch, Planner, PlanSettings, rank_micro_batches
from training.models.dit import DiT

TOKENS = {"64x64x17": 320, "64x64x1": 64, "80x48x9": 180, "128x128x33": 2304}
BUCKETS = st.lists(st.sampled_from(list(TOKENS)), min_size=1, max_size=120)
TOKENS_PER_STEP = st.integers(1, 6000)
MODEL = DiT(depth=12, dim=64, heads=4)
MAX_TOKENS = st.none() | st.integers(max(TOKENS.values()), 8000)
SEED = st.integers(0, 2**32)
MIXES_SHAPES = st.booleans()
WEIGHT = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0])


def planner_over(
    buckets: list[str],
    tokens_per_step: int = 1000,
    max_tokens: int | None = None,
    seed: int = 0,
    mixes_shapes: bool = True,
    weights: dict[str, float] | None = None,
) -> Planner:
    settings = PlanSettings(tokens_per_step=tokens_per_step, max_tokens_per_micro=max_tokens, weights=weights or {})
    work = {bucket: Work(count, MODEL.flops(count, 150)) for bucket, count in TOKENS.items()}
    costs = SampleCosts({bucket: (one, one) for bucket, one in work.items()}, mixes_shapes)
    return Planner(buckets, [TOKENS[bucket] for bucket in buckets], settings, seed, costs)


def steps_of(planner: Planner, epoch: int) -> list[GlobalStep]:
    first = sum(planner.steps_in(before) for before in range(epoch))
    return [planner.step(first + index) for index in range(planner.steps_in(epoch))]


def occurrences_in(steps: list[GlobalStep]) -> list[tuple[int, int]]:
    """Return the row and the number of times it was seen before, for all samples of the steps in order."""
    return [pair for step in steps for pair in zip(step.rows.tolist(), step.times_seen.tolist(), strict=True)]


def all_micro_batches(step: GlobalStep, world_size: int) -> list[list[MicroBatch]]:
    """Return the micro-batches of each rank."""
    return [rank_micro_batches(step, rank, world_size) for rank in range(world_size)]


@pytest.mark.slow
@given(BUCKETS, TOKENS_PER_STEP, MAX_TOKENS, SEED, MIXES_SHAPES)
def test_each_sample_is_in_one_step_of_each_epoch(
    buckets: list[str], tokens_per_step: int, max_tokens: int | None, seed: int, mixes_shapes: bool
) -> None:
    planner = planner_over(buckets, tokens_per_step, max_tokens, seed, mixes_shapes)
    for epoch in range(3):
        steps = steps_of(planner, epoch)
        assert {step.epoch for step in steps} == {epoch}
        assert all(len(step.rows) for step in steps)
        assert sorted(occurrences_in(steps)) == [(row, epoch) for row in range(len(buckets))]


@pytest.mark.slow
@given(BUCKETS, TOKENS_PER_STEP, SEED)
def test_packed_steps_differ_by_less_than_a_sample(buckets: list[str], tokens_per_step: int, seed: int) -> None:
    planner = planner_over(buckets, tokens_per_step, None, seed)
    total = sum(TOKENS[bucket] for bucket in buckets)
    steps = steps_of(planner, 0)
    assert len(steps) == min(len(buckets), -(-total // tokens_per_step))
    for step in steps:
        tokens = [TOKENS[buckets[row]] for row in step.rows]
        assert len(tokens) == 1 or sum(tokens) < total / len(steps) + max(TOKENS.values())
        assert sum(tokens) < tokens_per_step + max(TOKENS.values())


@pytest.mark.slow
@settings(max_examples=300)
@given(BUCKETS, TOKENS_PER_STEP, MAX_TOKENS, SEED, st.integers(1, 9), st.integers(0, 500), MIXES_SHAPES)
def test_any_number_of_ranks_computes_the_whole_step(
    buckets: list[str],
    tokens_per_step: int,
    max_tokens: int | None,
    seed: int,
    world_size: int,
    index: int,
    mixes_shapes: bool,
) -> None:
    step = planner_over(buckets, tokens_per_step, max_tokens, seed, mixes_shapes).step(index)
    by_rank = all_micro_batches(step, world_size)
    assert len({len(micro_batches) for micro_batches in by_rank}) == 1
    micro_batches = [micro_batch for of_rank in by_rank for micro_batch in of_rank]
    counted = [
        (row, seen)
        for micro_batch in micro_batches
        for row, seen, weight in zip(micro_batch.rows, micro_batch.times_seen, micro_batch.weights, strict=True)
        if weight
    ]
    assert sorted(counted) == sorted(occurrences_in([step]))  # the samples do not depend on the number of ranks
    assert sum(weight for micro_batch in micro_batches for weight in micro_batch.weights) == len(step.rows)
    for micro_batch in micro_batches:
        assert micro_batch.rows
        assert set(micro_batch.weights) in ({0.0}, {1.0})
        assert set(micro_batch.rows) <= set(step.rows.tolist())
        if max_tokens is not None:
            assert sum(TOKENS[buckets[row]] for row in micro_batch.rows) <= max_tokens
        if not mixes_shapes:
            assert len({buckets[row] for row in micro_batch.rows}) == 1
    # No micro-step is without work.
    assert all(any(sum(of_rank[number].weights) for of_rank in by_rank) for number in range(len(by_rank[0])))


@pytest.mark.slow
@given(BUCKETS, TOKENS_PER_STEP, SEED, MIXES_SHAPES, st.permutations(range(20)))
def test_a_step_does_not_depend_on_earlier_calls(
    buckets: list[str], tokens_per_step: int, seed: int, mixes_shapes: bool, order: list[int]
) -> None:
    """So a run that resumes at any step has the rest of the plan of a run without interruption."""
    first = planner_over(buckets, tokens_per_step, None, seed, mixes_shapes)
    in_order = [occurrences_in([first.step(index)]) for index in range(20)]
    second = planner_over(buckets, tokens_per_step, None, seed, mixes_shapes)
    assert {index: occurrences_in([second.step(index)]) for index in order} == dict(enumerate(in_order))


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(list(TOKENS)), min_size=4, max_size=60),
    TOKENS_PER_STEP,
    SEED,
    MIXES_SHAPES,
    WEIGHT,
    WEIGHT,
)
def test_weights_are_exact(
    buckets: list[str], tokens_per_step: int, seed: int, mixes_shapes: bool, image_weight: float, size_weight: float
) -> None:
    """After any number of epochs a sample was seen as often as its weight says, within one, and counted each time."""
    buckets = [*buckets, "64x64x1", "64x64x17", "80x48x9"]
    planner = planner_over(
        buckets, tokens_per_step, None, seed, mixes_shapes, {"*x1": image_weight, "64x64": size_weight}
    )
    exact_images, exact_size = (Fraction(weight).limit_denominator(100) for weight in (image_weight, size_weight))
    expected = {"64x64x1": exact_images * exact_size, "64x64x17": exact_size}
    seen: Counter[int] = Counter()
    for epoch in range(1, 61):
        steps = steps_of(planner, epoch - 1)
        assert all(len(step.rows) for step in steps)
        occurrences = occurrences_in(steps)
        for row, bucket in enumerate(buckets):
            counts = sorted(count for other, count in occurrences if other == row)
            assert counts == list(range(seen[row], seen[row] + len(counts)))
            seen[row] += len(counts)
            due = epoch * expected.get(bucket, Fraction(1))
            assert seen[row] == due if due.denominator == 1 else abs(seen[row] - due) < 1


def test_a_weight_of_half_shows_the_halves_in_turn() -> None:
    planner = planner_over(["64x64x17"] * 5 + ["64x64x1"] * 10, weights={"*x1": 0.5})
    images = [{row for row, _ in occurrences_in(steps_of(planner, epoch)) if row >= 5} for epoch in range(4)]
    assert [len(rows) for rows in images] == [5] * 4
    assert images[0].isdisjoint(images[1])
    assert images[0] == images[2]


@pytest.mark.slow
def test_the_weighted_loss_is_the_mean_for_any_world_size() -> None:
    buckets = ["64x64x17"] * 23 + ["64x64x1"] * 9
    losses = np.random.default_rng(0).uniform(size=len(buckets))
    for mixes_shapes in (False, True):
        step = planner_over(buckets, 32 * 320, 2304, mixes_shapes=mixes_shapes).step(0)
        assert len(step.rows) == len(buckets)
        for world_size in range(1, 40):
            micro_batches = itertools.chain.from_iterable(all_micro_batches(step, world_size))
            total = sum(
                weight * losses[row]
                for micro_batch in micro_batches
                for row, weight in zip(micro_batch.rows, micro_batch.weights, strict=True)
            )
            assert total / len(step.rows) == pytest.approx(losses.mean(), rel=1e-12)


def test_orders_differ_between_epochs_and_seeds() -> None:
    buckets = ["64x64x1"] * 40 + ["64x64x17"] * 40
    for mixes_shapes in (False, True):
        orders = [
            [
                step.rows.tolist()
                for step in steps_of(planner_over(buckets, seed=seed, mixes_shapes=mixes_shapes), epoch)
            ]
            for seed in (0, 1)
            for epoch in (0, 1)
        ]
        assert len({str(order) for order in orders}) == len(orders)


@pytest.mark.slow
@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_the_order_is_uniform(mixes_shapes: bool) -> None:
    """Samples come first in an epoch equally often: chi-squared with 9 degrees of freedom, 99.9 % below 27.9."""
    planner = planner_over(["64x64x17"] * 10, tokens_per_step=1, mixes_shapes=mixes_shapes)
    first = Counter(int(planner.step(10 * epoch).rows[0]) for epoch in range(2000))
    assert sum((first[row] - 200) ** 2 / 200 for row in range(10)) < 27.9


GOLDEN = {
    False: "[[[[3, 2]], [[6]]], [[[4]], [[8, 7, 10, 9]]], [[[1, 0]], [[5]]]]",
    True: "[[[[10, 5]], [[2]]], [[[3, 6]], [[7, 9, 1]]], [[[4, 8]], [[0]]]]",
}
"""Rows of epoch 1 by step, rank and micro-step, by whether samples of several buckets share a micro-batch."""


@pytest.mark.slow
@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_golden_order(mixes_shapes: bool) -> None:
    """Resuming depends on this order, so it is the same in other processes, on other machines, and with any numpy."""
    code = (
        "from training.data.costs import SampleCosts\n"
        "from training.data.plan import Planner, PlanSettings, rank_micro_batches\n"
        "sizes = {'64x64x17': (320, 320), '64x64x1': (64, 64)}\n"
        f"costs = SampleCosts(SampleCosts.from_tokens(sizes).work, {mixes_shapes})\n"
        "settings = PlanSettings(tokens_per_step=960)\n"
        "p = Planner(['64x64x17'] * 7 + ['64x64x1'] * 4, [320] * 7 + [64] * 4, settings, 3, costs)\n"
        "steps = [p.step(p.steps_in(0) + i) for i in range(p.steps_in(1))]\n"
        "print([[[list(m.rows) for m in rank_micro_batches(step, r, 2)] for r in (0, 1)] for step in steps])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == GOLDEN[mixes_shapes]


def test_a_rank_without_samples_repeats_the_cheapest() -> None:
    step = planner_over(["64x64x17", "64x64x1"], 640).step(0)
    (idle,) = [of_rank for of_rank in all_micro_batches(step, 3) if not sum(of_rank[0].weights)]
    assert [(micro_batch.rows, micro_batch.weights) for micro_batch in idle] == [((1,), (0.0,))]


@pytest.mark.parametrize(
    ("buckets", "tokens", "max_tokens", "weights", "message"),
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
    buckets: list[str], tokens: list[int], max_tokens: int | None, weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(buckets, tokens, PlanSettings(max_tokens_per_micro=max_tokens, weights=weights), 0)


def test_a_bucket_of_weight_0_may_exceed_the_limit() -> None:
    planner = Planner(["8x8x1", "8x8x9"], [1, 9], PlanSettings(max_tokens_per_micro=4, weights={"*x9": 0.0}), 0)
    assert occurrences_in(steps_of(planner, 0)) == [(0, 0)]


def test_impossible_ranks_and_steps_are_refused() -> None:
    planner = planner_over(["64x64x17"])
    with pytest.raises(ValueError, match="step -1"):
        planner.step(-1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        rank_micro_batches(planner.step(0), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_a_million_samples_are_planned(mixes_shapes: bool) -> None:
    """Only the current epoch is in memory. It takes under a second on a desktop CPU."""
    rng = np.random.default_rng(0)
    buckets = rng.choice(list(TOKENS), 1_000_000).tolist()
    costs = SampleCosts({bucket: (Work(count, count),) * 2 for bucket, count in TOKENS.items()}, mixes_shapes)
    planner = Planner(buckets, [TOKENS[bucket] for bucket in buckets], PlanSettings(), 0, costs)
    assert sum(len(planner.step(index).rows) for index in range(planner.steps_in(0))) == 1_000_000
