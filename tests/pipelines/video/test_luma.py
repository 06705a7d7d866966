from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.video.luma import block_means, sharpness


def test_block_means_are_the_means_of_blocks() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (72, 128)).astype(np.uint8)
    assert block_means(picture) == pytest.approx(picture.reshape(9, 8, 16, 8).mean(axis=(1, 3)), abs=1e-4)
    assert block_means(picture, 4) == pytest.approx(picture.reshape(18, 4, 32, 4).mean(axis=(1, 3)), abs=1e-4)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (6, 7)).astype(np.uint8)
    luma = picture / 255
    values = [
        luma[i - 1, j] + luma[i + 1, j] + luma[i, j - 1] + luma[i, j + 1] - 4 * luma[i, j]
        for i in range(1, 5)
        for j in range(1, 6)
    ]
    assert sharpness(picture) == pytest.approx(np.var(values), rel=1e-5)


def test_blur_lowers_sharpness_and_a_gradient_has_none() -> None:
    crisp = (np.indices((64, 64)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)
    assert sharpness(crisp) > 10 * sharpness(cv2.blur(crisp, (5, 5))) > 0
    assert sharpness(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)) < 1e-9
    assert sharpness(np.ones((2, 50), np.uint8)) == 0.0
