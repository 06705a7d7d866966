"""The construction of runs: the untrained model, and plans that count last-frame latents like training does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import BoolArray, Int64Array
from tests.support.drawn import write_dataset
from tests.support.step_samples import CONFIG, CPU
from training.assembly import make_planner, open_untrained_engine
from training.conditioning import ConditioningRates
from training.data.costs import SampleCosts, Work
from training.data.dataset import Dataset
from training.data.loader import collate
from training.data.plan import LastFrameConditioning, Planner, PlanSettings, rank_micro_batches
from training.inputs import make_noisy_batch
from training.models.dit import DiT
from training.settings import TrainSettings

TOKENS = {"64x64x17": (320, 64), "64x64x5": (128, 64), "64x64x1": (64, 0), "128x128x33": (2304, 256)}
"""Tokens of a sample and of its last-frame latent, by bucket."""


def is_conditioned(rows: Int64Array, times_seen: int) -> BoolArray:
    """Return whether the last frame conditions each sample: about a third of them, others in each epoch."""
    conditioned: BoolArray = (7 * rows + 5 * times_seen) % 3 == 0
    return conditioned


def tokens_of(bucket: str, row: int, times_seen: int) -> int:
    """Return the tokens of a sample with its last-frame latent, if that conditions it."""
    tokens, last_frame = TOKENS[bucket]
    return tokens + last_frame * bool(is_conditioned(np.array([row]), times_seen)[0])


@dataclass(frozen=True)
class PlanCase:
    """A data set's buckets and the settings of a plan over it."""

    buckets: list[str]
    tokens_per_step: int
    max_tokens: int | None
    mixes_shapes: bool = True
    weights: Mapping[str, float] | None = None

    def planner(self, with_last_frames: bool = True) -> Planner:
        """Return the plan of this case."""
        plan = PlanSettings(
            tokens_per_step=self.tokens_per_step,
            max_tokens_per_micro=self.max_tokens,
            weights={name: weight for name, weight in (self.weights or {}).items() if name in self.buckets},
        )
        rows = np.arange(len(self.buckets))
        last_frames = LastFrameConditioning(
            lambda chosen, times_seen: is_conditioned(rows[chosen], times_seen),
            {name: last_frame for name, (_, last_frame) in TOKENS.items()},
        )
        tokens = [TOKENS[name][0] for name in self.buckets]
        both = {name: (count, count + last_frame * with_last_frames) for name, (count, last_frame) in TOKENS.items()}
        costs = replace(SampleCosts.from_tokens(both), mixes_shapes=self.mixes_shapes)
        return Planner(self.buckets, tokens, plan, 0, costs, last_frames if with_last_frames else None)


CASES = st.builds(
    PlanCase,
    buckets=st.lists(st.sampled_from(list(TOKENS)), min_size=1, max_size=80),
    tokens_per_step=st.integers(1, 9000),
    max_tokens=st.none() | st.integers(2560, 6000),
    mixes_shapes=st.booleans(),
    weights=st.sampled_from([{}, {"64x64x17": 1.5, "64x64x5": 3.0}]),
)


@pytest.mark.slow
@settings(max_examples=200)
@given(case=CASES, world_size=st.integers(1, 5), index=st.integers(0, 100))
def test_no_worker_exceeds_its_limit_with_last_frames(case: PlanCase, world_size: int, index: int) -> None:
    step, plain = case.planner().step(index), case.planner(with_last_frames=False).step(index)
    assert np.array_equal(step.rows, plain.rows), "last frames do not change which samples a step has"
    assert np.array_equal(step.times_seen, plain.times_seen)
    views = list(zip(step.rows.tolist(), step.times_seen.tolist(), strict=True))
    assert step.workload.tokens.tolist() == [tokens_of(case.buckets[row], row, seen) for row, seen in views]
    counted = []
    for rank in range(world_size):
        for micro in rank_micro_batches(step, rank, world_size):
            micro_views = list(zip(micro.rows, micro.times_seen, strict=True))
            counted += [view for view, weight in zip(micro_views, micro.weights, strict=True) if weight]
            tokens = sum(tokens_of(case.buckets[row], row, seen) for row, seen in micro_views)
            assert case.max_tokens is None or tokens <= case.max_tokens
    assert sorted(counted) == sorted(views)


def test_a_last_frame_costs_as_much_as_a_latent_frame() -> None:
    step = PlanCase(["64x64x5"] * 6, 10_000, None).planner().step(0)
    rows, costs = step.rows.tolist(), step.workload.costs.tolist()
    by_tokens = {(tokens_of("64x64x5", row, 0), cost) for row, cost in zip(rows, costs, strict=True)}
    assert by_tokens == {(128, 2**30), (192, 3 * 2**29)}


def test_a_limit_too_small_for_a_last_frame_is_refused() -> None:
    message = (
        r"320 tokens, 384 with the last frame that `last` and `both` of conditioning add, more than .* 383; "
        "raise it to 384"
    )
    with pytest.raises(ValueError, match=message):
        PlanCase(["64x64x17"], 1000, 383).planner()
    PlanCase(["64x64x17"], 1000, 384).planner()
    PlanCase(["64x64x1"], 1000, 64).planner()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 9, 12), (32, 32, 1, 6), (48, 16, 5, 8)], n_val=0)


def settings_with(**rates: float) -> TrainSettings:
    """Return settings of training with these shares of conditioning."""
    batch = PlanSettings(tokens_per_step=300, max_tokens_per_micro=100)
    return TrainSettings(model=DiT(depth=1, dim=32, heads=2), batch=batch, conditioning=ConditioningRates(**rates))


@pytest.mark.slow
def test_planned_tokens_are_those_that_the_model_gets(manifest: str) -> None:
    """Over two epochs, by the noise that training draws for each micro-batch."""
    dataset, train = Dataset.open(manifest, "train"), settings_with(none=0.4, last=0.4, both=0.2)
    config = replace(CONFIG, conditioning=train.conditioning, seed=3, null_text=dataset.null_text())
    plan = make_planner(dataset, train, seed=3)
    n_last_frames = 0
    for index in range(plan.steps_in(0) + plan.steps_in(1)):
        step = plan.step(index)
        tokens: list[int] = []
        for micro in rank_micro_batches(step, 0, 1):
            samples = [dataset.sample(row, seen) for row, seen in zip(micro.rows, micro.times_seen, strict=True)]
            batch = collate(samples, micro, step.epoch, 8)
            noisy = make_noisy_batch(config, batch, np.full(len(micro.rows), 0.5), CPU).noisy
            sizes = [latent.shape[1:].numel() for latent in noisy]
            pairs = zip(noisy, batch.latents, strict=True)
            n_last_frames += sum(one.shape[1] > latent.shape[1] for one, latent in pairs)
            assert sum(sizes) <= 100
            tokens += sizes
        assert sorted(tokens) == sorted(step.workload.tokens.tolist())
    assert n_last_frames > 10


def test_the_plan_without_last_frames_is_by_flops_alone(manifest: str) -> None:
    dataset, train = Dataset.open(manifest, "train"), settings_with(none=0.5, first=0.5)
    table = dataset.table
    work = {}
    for name in set(table["bucket"].to_pylist()):
        rows = [row for row in table.to_pylist() if row["bucket"] == name]
        tokens = rows[0]["n_tokens"] // 4
        work[name] = Work(tokens, train.model.flops(tokens, round(sum(row["n_text"] for row in rows) / len(rows))))
    costs = SampleCosts({name: (one, one) for name, one in work.items()})
    expected = Planner(table["bucket"].to_pylist(), table["n_tokens"].to_pylist(), train.batch, 3, costs)
    plan = make_planner(dataset, train, seed=3)
    for index in range(10):
        step, expected_step = plan.step(index), expected.step(index)
        assert np.array_equal(step.rows, expected_step.rows)
        assert np.array_equal(step.workload.costs, expected_step.workload.costs)
        assert np.array_equal(step.workload.tokens, expected_step.workload.tokens)


def test_the_untrained_model_depends_on_its_seed_alone() -> None:
    """Its weights are those of a model built in memory, and torch's global random state is left unchanged."""
    train = TrainSettings(model=DiT(depth=6, dim=64, heads=2))
    torch.manual_seed(5)
    expected = dict(train.model.build(5, 24).named_parameters())
    before = torch.get_rng_state()
    weights = open_untrained_engine(train, 5, 24, 5, CPU).full_parameters()
    assert torch.get_rng_state().equal(before)
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(weight) for name, weight in expected.items())
