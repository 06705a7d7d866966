"""Averaged weights: the recurrence, its ramp, and fp32, without which small updates are lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.ema import Ema, decay_at


def test_averages_follow_the_recurrence() -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    ema = Ema([torch.tensor([values[0]])], 0.9)
    expected = float(values[0])
    for step, value in enumerate(values[1:]):
        ema.update([torch.tensor([value])], step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(value)
    assert float(ema.averages[0]) == pytest.approx(expected, rel=1e-5)


def test_the_ramp_removes_the_initial_weights() -> None:
    assert decay_at(0, 0.9999) == 0.1
    assert decay_at(89_990, 0.9999) == 0.9999
    ema = Ema([torch.tensor([1000.0])], 0.9999)
    for step in range(200):
        ema.update([torch.tensor([1.0])], step)
    assert float(ema.averages[0]) == pytest.approx(1.0, abs=1e-3)


def test_averages_lie_between_old_and_new_weights() -> None:
    ema = Ema([torch.tensor([2.0, -1.0])], 0.99)
    ema.update([torch.tensor([2.0, 1.0])], 1000)
    assert float(ema.averages[0][0]) == 2.0
    assert -1.0 < float(ema.averages[0][1]) < 1.0


def test_small_updates_are_not_rounded_away() -> None:
    """An update of 1e-4 of the distance to a weight 1% away is below the resolution of bf16, and must count."""
    ema = Ema([torch.ones(1)], 0.9999)
    for _ in range(100):
        ema.update([torch.full((1,), 1.01)], 10**6)
    assert float(ema.averages[0]) - 1 == pytest.approx(0.01 * (1 - 0.9999**100), rel=0.05)


def test_averages_share_no_memory_with_the_weights() -> None:
    weight = torch.ones(3)
    ema = Ema([weight], 0.9)
    weight.zero_()
    assert ema.averages[0].tolist() == [1, 1, 1]
