"""Losses by part: weighted means that add up, the same whatever rank a sample was on."""

from __future__ import annotations

import pytest
import torch

from training.conditioning import ConditioningRates
from training.data.buckets import BucketSettings
from training.data.loader import Batch
from training.framing import full_framing
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.step import StepConfig, key, make_noisy_batch, stratified_quantiles
from training.tracking.breakdown import Outcome, breakdown, outcomes

DONE = [
    Outcome("a", 1.0, 1.0, 0.05, 64, 9),
    Outcome("b", 3.0, 1.0, 0.35, 64, 9),
    Outcome("c", 5.0, 2.0, 0.39, 64, 1),
    Outcome("d", 7.0, 1.0, 1.0, 32, 1),
]


def test_parts_are_the_means_of_their_samples() -> None:
    assert breakdown(DONE, "loss") == {
        "loss": 21 / 5,
        "loss_time/0.0": 1.0,
        "loss_time/0.3": pytest.approx(13 / 3),
        "loss_time/0.9": 7.0,
        "loss_bucket/64px_9f": 2.0,
        "loss_bucket/64px_1f": 5.0,
        "loss_bucket/32px_1f": 7.0,
        "loss_kind/video": 2.0,
        "loss_kind/image": pytest.approx(17 / 3),
    }


def test_the_order_of_samples_does_not_matter() -> None:
    assert breakdown(DONE[::-1], "loss") == pytest.approx(breakdown(DONE, "loss"))


@pytest.mark.parametrize("size", [64, 96, 256, 512, 768, 1024])
def test_all_aspects_of_a_size_are_one_class_and_stand_ins_count_for_nothing(size: int) -> None:
    sides = [(bucket.width, bucket.height) for bucket in BucketSettings(size=size, frames=(9,), fps=8).buckets()]
    assert len(sides) > 2
    count = len(sides)
    names = [f"clip {place}" for place in range(count)]
    weights = torch.ones(count)
    weights[1] = 0
    batch = Batch(
        latents=[torch.zeros(1, 3, 2, 2)] * count,
        last_frame_latents=[None] * count,
        texts=[torch.zeros(1, 8)] * count,
        uids=names,
        weights=weights,
        fps=torch.full((count,), 8.0),
        sizes=sides,
        framings=[full_framing(*side, 0.0) for side in sides],
        buckets=[""] * count,
        times_seen=[0] * count,
        epoch=0,
    )
    task = StepConfig(
        DiT(depth=1, dim=32, heads=2), FlowMatching(), ConditioningRates(none=1.0), 0.0, torch.zeros(1, 8), 4, seed=0
    )
    inputs = make_noisy_batch(task, batch, stratified_quantiles(0, [key(0, name) for name in names]), torch.device("cpu"))
    done = outcomes(task, batch, inputs.times, [1.0] * count)
    assert {(one.side, one.frames) for one in done} == {(size, 9)}
    assert [one.uid for one in done] == names[:1] + names[2:]
    assert [one.time for one in done] == inputs.times[:1] + inputs.times[2:]
