"""Losses by part: weighted means that add up, the same whatever rank a sample was on."""

from __future__ import annotations

import pytest

from training.breakdown import Outcome, breakdown

DONE = [
    Outcome("a", 1.0, 1.0, 0.05, "64x48x9"),
    Outcome("b", 3.0, 1.0, 0.35, "64x48x9"),
    Outcome("c", 5.0, 2.0, 0.39, "64x48x1"),
    Outcome("d", 7.0, 1.0, 1.0, "48x64x1"),
]


def test_parts_are_the_means_of_their_samples() -> None:
    assert breakdown(DONE, "loss") == {
        "loss": 21 / 5,
        "loss_time/0.0": 1.0,
        "loss_time/0.3": pytest.approx(13 / 3),
        "loss_time/0.9": 7.0,
        "loss_bucket/64x48x9": 2.0,
        "loss_bucket/64x48x1": 5.0,
        "loss_bucket/48x64x1": 7.0,
        "loss_kind/video": 2.0,
        "loss_kind/image": pytest.approx(17 / 3),
    }


def test_the_order_of_samples_does_not_matter() -> None:
    assert breakdown(DONE[::-1], "loss") == pytest.approx(breakdown(DONE, "loss"))
