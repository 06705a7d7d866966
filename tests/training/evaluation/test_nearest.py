"""Nearest training clips by content and by motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.evaluation.nearest import Thumbnails, TrainingClips, nearest, thumbnail


def clips(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random latents `[4, 5, 8, 12]` by name."""
    rng = torch.Generator().manual_seed(seed)
    return {f"clip-{index}": torch.randn(4, 5, 8, 12, generator=rng) for index in range(n)}


def test_the_nearest_clip_and_its_ratio_are_found() -> None:
    rng = np.random.default_rng(0)
    stored = Thumbnails(tuple(f"t{index}" for index in range(40)), rng.normal(size=(40, 64)).astype(np.float32))
    queries = np.stack([stored.values_ND[7], rng.normal(size=64)]).astype(np.float32)
    copy, other = nearest(Thumbnails(("copy", "other"), queries), stored)
    assert (copy.training_uid, copy.distance) == ("t7", pytest.approx(0, abs=1e-3))
    assert copy.ratio < 0.01
    assert 0.8 < other.ratio <= 1
    brute = np.sqrt(((stored.values_ND - queries[1]) ** 2).mean(1))
    assert (other.training_uid, other.distance) == (f"t{brute.argmin()}", pytest.approx(float(brute.min()), rel=1e-4))


def test_thumbnails_are_averages_over_space_alone() -> None:
    latent = torch.arange(2 * 3 * 16 * 24, dtype=torch.float32).reshape(2, 3, 16, 24)
    small = thumbnail(latent)
    assert small.shape == (2, 3, 8, 8)
    assert small.mean(axis=(2, 3)) == pytest.approx(latent.mean(dim=(2, 3)).numpy())


def test_motion_is_the_size_of_the_change_between_frames() -> None:
    latent = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = np.sqrt((np.diff(latent.numpy(), axis=1) ** 2).mean(axis=0))
    assert thumbnail(latent, "motion") == pytest.approx(expected[None], rel=1e-5)


def test_motion_in_other_colours_is_found_by_motion_alone() -> None:
    stored = clips(20)
    recoloured = -stored["clip-3"].flip(0) + torch.tensor([3.0, -2.0, 1.0, 4.0])[:, None, None, None]
    training = TrainingClips(stored.items())
    (motion,) = training.nearest([("recoloured", recoloured)], "motion")
    assert (motion.name, motion.training_uid) == ("recoloured", "clip-3")
    assert motion.ratio < 0.01
    (content,) = training.nearest([("recoloured", recoloured)], "content")
    assert content.ratio > 0.9


def test_a_still_of_a_clip_is_found_by_content_alone() -> None:
    background = {name: one.mean(1, keepdim=True) * 5 for name, one in clips(20, seed=2).items()}
    training = TrainingClips((name, background[name] + moving) for name, moving in clips(20).items())
    still = background["clip-5"].expand(-1, 5, -1, -1)
    (content,) = training.nearest([("still", still)], "content")
    assert (content.training_uid, content.ratio < 0.6) == ("clip-5", True)
    (motion,) = training.nearest([("still", still)], "motion")
    assert motion.ratio > 0.9


def test_no_clips_have_no_nearest_ones() -> None:
    assert TrainingClips(clips(2).items()).nearest([], "content") == []
