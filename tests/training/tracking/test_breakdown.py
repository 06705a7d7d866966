"""Losses by part: weighted means, in any order of samples, with all aspects of a size in one class."""

from __future__ import annotations

import math

import pytest
import torch

from training.data.buckets import BucketSettings
from training.tracking.breakdown import LossParts, weighted_sums

BUCKETS = ["64x64x9", "64x64x9", "64x64x1", "32x32x1"]
LOSSES, WEIGHTS, TIMES = [1.0, 3.0, 5.0, 7.0], [1.0, 1.0, 2.0, 1.0], [0.05, 0.35, 0.39, 1.0]
PARTS = LossParts(BUCKETS)


def record(order: list[int], losses: list[float] = LOSSES, weights: list[float] = WEIGHTS) -> dict[str, float]:
    """Return the record of the samples in this order."""
    members = PARTS.members([BUCKETS[i] for i in order], [TIMES[i] for i in order])
    columns = (torch.tensor([values[i] for i in order]) for values in (losses, weights))
    return PARTS.record(weighted_sums(members, *columns).tolist(), "loss")


def test_parts_are_weighted_means_of_their_samples() -> None:
    assert record([0, 1, 2, 3]) == {
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
    assert record([3, 2, 1, 0]) == pytest.approx(record([0, 1, 2, 3]))


def test_samples_of_weight_0_do_not_count() -> None:
    assert record([0, 1, 2, 3], [1.0, math.nan, 5.0, 7.0], [1.0, 0.0, 2.0, 1.0]) == record([0, 2, 3])


def test_an_infinite_loss_is_in_its_own_parts_alone() -> None:
    found = record([0, 1, 2, 3], [1.0, 3.0, 5.0, math.inf])
    assert found["loss"] == found["loss_kind/image"] == found["loss_bucket/32px_1f"] == math.inf
    assert (found["loss_kind/video"], found["loss_bucket/64px_1f"]) == (2.0, 5.0)


@pytest.mark.parametrize("size", [64, 96, 256, 512, 768, 1024])
def test_all_aspects_of_a_size_are_one_class(size: int) -> None:
    names = [bucket.name for bucket in BucketSettings(size=size, frames=(9,), fps=8).buckets()]
    assert len(names) > 2
    assert [part for part in LossParts(names).names if "bucket" in part] == [f"_bucket/{size}px_9f"]
