"""Fréchet and kernel distance against their values for normal distributions, and a network of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.evaluation.feature_distances import distances, frechet_distance, kernel_distance, open_features


def test_the_frechet_distance_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)) * 2 + [1, 0, 0]
    # |1|² + trace(I + 4 I - 2 * 2 I) = 1 + 3
    assert frechet_distance(a, b) == pytest.approx(4, rel=0.08)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_of_one_distribution_is_zero() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(50, 4)), rng.normal(size=(50, 4))) for _ in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert kernel_distance(rng.normal(size=(50, 4)), rng.normal(size=(50, 4)) + 1) > 1


def test_too_few_clips_have_no_distance() -> None:
    assert distances([[1.0, 2.0]], [[1.0, 2.0], [2.0, 3.0]]) is None
    found = distances([[1.0, 2.0], [2.0, 3.0]], [[1.0, 2.0], [2.0, 3.0]])
    assert found is not None
    assert (found["frechet"], found["generated"], found["real"]) == (pytest.approx(0, abs=1e-9), 2, 2)


class MeanColour(torch.nn.Module):
    """Features of a video: the mean of each colour."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=(2, 3, 4))


def test_features_are_those_of_a_torchscript_network(tmp_path: Path) -> None:
    path = tmp_path / "features.pt"
    torch.jit.trace(MeanColour(), torch.zeros(1, 3, 2, 4, 4)).save(str(path))
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[..., 1] = 255
    assert open_features(str(path))(frames) == [-1.0, 1.0, -1.0]
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"bad\.pt is no TorchScript file"):
        open_features(str(tmp_path / "bad.pt"))
