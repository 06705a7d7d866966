"""Which frames are given, at which noise level, and when they are shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from training.conditioning import ConditioningRates, first_frames, frame_times, latent_seconds


def test_rates_hold_over_many_draws() -> None:
    chance = torch.Generator().manual_seed(0)
    masks = [ConditioningRates(none=0.75, first=0.25).draw(chance, 5) for _ in range(4000)]
    assert {tuple(mask.tolist()) for mask in masks} == {(0.0,) * 5, (1.0, 0.0, 0.0, 0.0, 0.0)}
    assert np.mean([mask[0] for mask in masks]) == pytest.approx(0.25, abs=0.02)


def test_an_image_is_never_given_whole() -> None:
    chance = torch.Generator().manual_seed(0)
    assert not any(ConditioningRates(none=0.0, first=1.0).draw(chance, 1).any() for _ in range(20))


def test_rates_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"none 0\.5 \+ first 0\.25 is 0\.75; the shares must sum to 1"):
        validate(ConditioningRates, {"none": 0.5})


def test_given_frames_take_their_own_noise_level() -> None:
    given = torch.stack([first_frames(1, 3), first_frames(0, 3)])
    times = frame_times(torch.tensor([0.5, 0.75]), given)
    assert times.tolist() == [[0.0, 0.5, 0.5], [0.75, 0.75, 0.75]]
    assert frame_times(torch.tensor([0.5, 0.75]), given, given_time=0.125)[0, 0] == 0.125


@given(n_frames=st.integers(1, 40), fps=st.floats(1, 120), factor=st.integers(1, 8))
def test_latent_seconds_are_the_mean_of_the_frames_they_cover(n_frames: int, fps: float, factor: int) -> None:
    got = latent_seconds(n_frames, torch.tensor([fps]), factor)[0]
    covered = [[0], *([1 + (k - 1) * factor + i for i in range(factor)] for k in range(1, n_frames))]
    np.testing.assert_allclose(got, [np.mean(frames) / fps for frames in covered], rtol=1e-5)
