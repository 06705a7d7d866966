"""Last pictures in budgets: what a worker holds and computes is what it was dealt, and what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.drawn import write_dataset
from tests.training.test_step import TASK
from training.conditioning import ConditioningRates
from training.data.costs import SampleCosts, Work
from training.data.assignment import Policy
from training.data.dataset import Dataset
from training.data.loader import collate
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.data.plan import LastFrameConditioning
from training.models.dit import DiT
from training.assembly import make_planner
from training.rng import uid_hashes
from training.settings import TrainSettings
from training.step import draw, samples_with_last_frame

CELLS = {"64x64x17": (320, 64), "64x64x5": (128, 64), "64x64x1": (64, 0), "128x128x33": (2304, 256)}
"""Cells of a sample, and of its tail latent."""
BUCKETS = st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=80)
POLICY: st.SearchStrategy[Policy] = st.sampled_from(["same", "bucketed", "pack"])

WEIGHTS: st.SearchStrategy[dict[str, float]] = st.sampled_from([{}, {"64x64x17": 1.5, "64x64x5": 3.0}])


def is_given(rows: NDArray[np.int64], seen: int) -> NDArray[np.bool_]:
    """About a third of samples, others in each pass."""
    given: NDArray[np.bool_] = (7 * rows + 5 * seen) % 3 == 0
    return given


def cells_of(name: str, row: int, seen: int) -> int:
    cells, tail = CELLS[name]
    return cells + tail * bool(is_given(np.array([row]), seen)[0])


def planner(
    buckets: list[str],
    budget: int,
    limit: int | None,
    policy: Policy,
    with_tails: bool = True,
    weights: Mapping[str, float] | None = None,
) -> Planner:
    cells = [CELLS[name][0] for name in buckets]
    known = {name: weight for name, weight in (weights or {}).items() if name in buckets}
    plan = PlanSettings(tokens_per_step=budget, max_tokens_per_micro=limit, policy=policy, weights=known)
    rows = np.arange(len(buckets))
    tails = LastFrameConditioning(lambda chosen, seen: is_given(rows[chosen], seen), {name: tail for name, (_, tail) in CELLS.items()})
    return Planner(buckets, cells, plan, 0, last_frames=tails if with_tails else None)


@settings(max_examples=200)
@given(
    BUCKETS,
    st.integers(1, 9000),
    st.none() | st.integers(2560, 6000),
    POLICY,
    WEIGHTS,
    st.integers(1, 5),
    st.integers(0, 100),
)
def test_no_worker_holds_more_than_its_limit_with_last_pictures(
    buckets: list[str],
    budget: int,
    limit: int | None,
    policy: Policy,
    weights: dict[str, float],
    world_size: int,
    index: int,
) -> None:
    step = planner(buckets, budget, limit, policy, weights=weights).step(index)
    plain = planner(buckets, budget, limit, policy, with_tails=False, weights=weights).step(index)
    assert np.array_equal(step.rows, plain.rows), "which samples a step has is not theirs to say"
    assert np.array_equal(step.times_seen, plain.times_seen)
    held = [cells_of(buckets[row], row, seen) for row, seen in zip(step.rows, step.times_seen, strict=True)]
    assert step.workload.tokens.tolist() == held
    counted = []
    for rank in range(world_size):
        for micro in rank_micro_batches(step, rank, world_size):
            views = list(zip(micro.rows, micro.times_seen, strict=True))
            counted += [view for view, weight in zip(views, micro.weights, strict=True) if weight]
            cells = sum(cells_of(buckets[row], row, seen) for row, seen in views)
            assert limit is None or cells <= limit
    assert sorted(counted) == sorted(zip(step.rows.tolist(), step.times_seen.tolist(), strict=True))


def test_a_last_picture_costs_what_a_frame_costs() -> None:
    step = planner(["64x64x5"] * 6, 10_000, None, "pack").step(0)
    assert {
        (cells_of("64x64x5", row, 0), cost)
        for row, cost in zip(step.rows.tolist(), step.workload.costs.tolist(), strict=True)
    } == {
        (128, 2**30),
        (192, 3 * 2**29),
    }


def test_a_limit_that_holds_no_last_picture_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"320 tokens, 384 with the last picture that `last` and `both` of conditioning give, more than .* 383; raise it to 384",
    ):
        planner(["64x64x17"], 1000, 383, "pack")
    planner(["64x64x17"], 1000, 384, "pack")
    planner(["64x64x1"], 1000, 64, "pack")


@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 3), st.integers(2, 9)), min_size=1, max_size=20),
)
def test_the_planner_knows_what_training_draws(seed: int, samples: list[tuple[str, int, int]]) -> None:
    task = replace(
        TASK,
        seed=seed,
        conditioning=ConditioningRates(none=0.2, first=0.2, last=0.2, both=0.2, middle=0.2, conditioning_noise=0.1),
    )
    numbers = uid_hashes(uid for uid, _, _ in samples)
    planned = np.array([samples_with_last_frame(task.conditioning, seed, numbers, seen) for seen in range(4)])
    assert [planned[seen, place] for place, (_, seen, _) in enumerate(samples)] == [
        draw(task, (1, n_frames, 1, 1), seen, uid).given.tail for uid, seen, n_frames in samples
    ]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 9, 12), (32, 32, 1, 6), (48, 16, 5, 8)], n_val=0)


def settings_of(**rates: float) -> TrainSettings:
    batch = PlanSettings(tokens_per_step=300, max_tokens_per_micro=100)
    return TrainSettings(model=DiT(depth=1, dim=32, heads=2), batch=batch, conditioning=ConditioningRates(**rates))


def test_what_is_dealt_is_what_the_model_is_shown(manifest: str) -> None:
    """Over two epochs, by the latents that training makes of each micro-batch."""
    dataset, run = Dataset.open(manifest, "train"), settings_of(none=0.4, last=0.4, both=0.2)
    task = replace(TASK, conditioning=run.conditioning, seed=3)
    plan = make_planner(dataset, run, seed=3)
    n_tails = 0
    for index in range(plan.steps_in(0) + plan.steps_in(1)):
        step = plan.step(index)
        shown = []
        for micro in rank_micro_batches(step, 0, 1):
            samples = [dataset.sample(row, seen) for row, seen in zip(micro.rows, micro.times_seen, strict=True)]
            batch = collate(samples, micro, step.epoch, 8, pin=False)
            noisy = [
                draw(task, latent.shape, seen, uid).noise_CTHW
                for latent, seen, uid in zip(batch.latents, batch.times_seen, batch.uids, strict=True)
            ]
            shown += [noise.shape[1:].numel() for noise in noisy]
            n_tails += sum(noise.shape[1] > latent.shape[1] for noise, latent in zip(noisy, batch.latents, strict=True))
            assert sum(noise.shape[1:].numel() for noise in noisy) <= 100
        assert sorted(shown) == sorted(step.workload.tokens.tolist())
    assert n_tails > 10


def test_without_last_pictures_nothing_is_dealt_otherwise(manifest: str) -> None:
    dataset, run = Dataset.open(manifest, "train"), settings_of(none=0.5, first=0.5)
    table = dataset.table
    work = {}
    for name in set(table["bucket"].to_pylist()):
        rows = [row for row in table.to_pylist() if row["bucket"] == name]
        tokens = rows[0]["n_tokens"] // 4
        work[name] = Work(tokens, run.model.flops(tokens, round(sum(row["n_text"] for row in rows) / len(rows))))
    costs = SampleCosts({name: (one, one) for name, one in work.items()})
    plain = Planner(table["bucket"].to_pylist(), table["n_tokens"].to_pylist(), run.batch, 3, costs)
    plan = make_planner(dataset, run, seed=3)
    for index in range(10):
        ours, expected = plan.step(index), plain.step(index)
        assert np.array_equal(ours.rows, expected.rows)
        assert np.array_equal(ours.workload.costs, expected.workload.costs)
        assert np.array_equal(ours.workload.tokens, expected.workload.tokens)
