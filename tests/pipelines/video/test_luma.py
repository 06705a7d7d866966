from __future__ import annotations

import numpy as np
import pytest

from pipelines.video.luma import area_weights, sharpness, shrink


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 3), (144, 32), (5, 5), (3, 8), (1, 4)])
def test_area_weights_average_intervals(n_in: int, n_out: int) -> None:
    weights = area_weights(n_in, n_out)
    assert weights.sum(axis=1) == pytest.approx(np.ones(n_out), abs=1e-6)
    fine = np.repeat(np.random.default_rng(0).random(n_in), n_out)
    by_hand = fine.reshape(n_out, n_in).mean(axis=1)
    assert weights @ fine.reshape(n_in, n_out)[:, 0] == pytest.approx(by_hand, abs=1e-6)


def test_shrink_averages_squares() -> None:
    picture = np.random.default_rng(1).random((10, 13)).astype(np.float32)
    small = shrink(picture, 4)
    assert small.shape == (2, 3)
    assert small[1, 2] == pytest.approx(picture[4:8, 8:12].mean(), rel=1e-6)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    picture = np.random.default_rng(2).random((6, 7)).astype(np.float32)
    values = [
        picture[i - 1, j] + picture[i + 1, j] + picture[i, j - 1] + picture[i, j + 1] - 4 * picture[i, j] for i in range(1, 5) for j in range(1, 6)
    ]
    assert sharpness(picture) == pytest.approx(np.var(values), rel=1e-5)


def test_blur_lowers_sharpness_and_a_gradient_has_none() -> None:
    crisp = (np.indices((64, 64)).sum(axis=0) // 8 % 2).astype(np.float32)
    blurred = sum(np.roll(crisp, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)) / np.float32(25)
    assert sharpness(crisp) > 10 * sharpness(blurred) > 0
    assert sharpness(np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None], 64, axis=0)) < 1e-9
    assert sharpness(np.ones((2, 50), np.float32)) == 0.0
