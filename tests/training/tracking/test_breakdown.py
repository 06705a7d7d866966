"""Losses by part: weighted means, in any order of samples, with all aspects of a size in one class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.step_samples import CONFIG, CPU, make_batch
from training.conditioning import ConditioningRates
from training.data.buckets import BucketSettings
from training.step import make_noisy_batch, sample_key, stratified_quantiles
from training.tracking.breakdown import SampleLoss, breakdown, sample_losses

LOSSES = [
    SampleLoss("a", 1.0, 1.0, 0.05, 64, 9),
    SampleLoss("b", 3.0, 1.0, 0.35, 64, 9),
    SampleLoss("c", 5.0, 2.0, 0.39, 64, 1),
    SampleLoss("d", 7.0, 1.0, 1.0, 32, 1),
]


def test_parts_are_weighted_means_of_their_samples() -> None:
    assert breakdown(LOSSES, "loss") == {
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
    assert breakdown(LOSSES[::-1], "loss") == pytest.approx(breakdown(LOSSES, "loss"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 96, 256, 512, 768, 1024])
def test_all_aspects_of_a_size_are_one_class(size: int) -> None:
    """Samples of weight 0 are left out."""
    sides = [(bucket.width, bucket.height) for bucket in BucketSettings(size=size, frames=(9,), fps=8).buckets()]
    count = len(sides)
    assert count > 2
    uids = [f"clip {index}" for index in range(count)]
    weights = torch.ones(count)
    weights[1] = 0
    latents, texts = [torch.zeros(1, 3, 2, 2)] * count, [torch.zeros(1, 8)] * count
    batch = make_batch(latents, texts, uids, weights=weights, sizes=sides)
    config = replace(CONFIG, conditioning=ConditioningRates(none=1.0), caption_drop=0.0, seed=0)
    quantile_of = stratified_quantiles(0, [sample_key(0, uid) for uid in uids])
    noisy = make_noisy_batch(config, batch, quantile_of, CPU)
    losses = sample_losses(config, batch, noisy.times, [1.0] * count)
    assert {(one.side, one.frames) for one in losses} == {(size, 9)}
    assert [one.uid for one in losses] == uids[:1] + uids[2:]
    assert [one.time for one in losses] == noisy.times[:1] + noisy.times[2:]
