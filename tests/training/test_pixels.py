"""PSNR and SSIM against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from cluster.arrays import Float64Array
from tests.support.autoencoder_clips import random_pair
from training.pixels import psnr_db, ssim


def blurred(image: Float64Array) -> Float64Array:
    """Return OpenCV's Gaussian blur at all pixels whose window lies inside the image."""
    return cv2.GaussianBlur(image, (11, 11), 1.5)[5:-5, 5:-5]  # type: ignore[return-value]


def ssim_by_opencv(a: Float64Array, b: Float64Array) -> float:
    """Return the SSIM of two images with values from 0 to 255."""
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    ratio /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(ratio.mean())


def test_ssim_and_psnr_are_those_of_opencv() -> None:
    made, video = random_pair(0)
    made_255, video_255 = (((x.double() + 1) * 127.5).numpy() for x in (made, video))
    for index in range(2):
        values = [
            ssim_by_opencv(made_255[index, colour, frame], video_255[index, colour, frame])
            for colour in range(3)
            for frame in range(2)
        ]
        assert float(ssim(made, video)[index]) == pytest.approx(np.mean(values), abs=1e-4)
        expected_db = cv2.PSNR(made_255[index].copy(), video_255[index].copy(), 255)
        assert float(psnr_db(made, video)[index]) == pytest.approx(expected_db, abs=1e-3)
    assert torch.allclose(ssim(video, video), torch.ones(2))
