"""How like a video what comes back of its latents is: PSNR and SSIM.

Shape suffixes: B videos, C colours, T H W frames, rows and columns, N pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANGE = 2.0
"""Of pixels in [-1, 1]."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
"""Window and constants of SSIM, from Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004)."""


def psnr_db(made_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """`[B]`: peak signal-to-noise ratio, of pixels clamped to [-1, 1]."""
    return decibels(squared_error(made_BCTHW, video_BCTHW))


def squared_error(made_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """`[B]`: mean over values, of pixels clamped to [-1, 1]."""
    return (made_BCTHW.float().clamp(-1, 1) - video_BCTHW.float()).square().mean(dim=(1, 2, 3, 4))


def decibels(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors; 106 dB at most, of what is equal."""
    return 10 * torch.log10(RANGE**2 / squared_error.clamp(min=1e-10))


def ssim(made_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """`[B]`: structural similarity of each frame and colour, averaged; windows stay inside the picture, whose sides are 11 at least."""
    # From 0 up: unlike PSNR it is not the same of shifted pixels.
    a_NHW, b_NHW = (x.float().clamp(-1, 1).flatten(0, 2) + 1 for x in (made_BCTHW, video_BCTHW))
    places = torch.arange(WINDOW, dtype=torch.float32, device=a_NHW.device) - WINDOW // 2
    bell = (-places.square() / (2 * SIGMA**2)).exp()
    weights: list[float] = (bell / bell.sum()).tolist()

    def blurred(x_NHW: Tensor) -> Tensor:
        return _weighed(_weighed(x_NHW, weights, -2), weights, -1)

    mean_a, mean_b = blurred(a_NHW), blurred(b_NHW)
    variance_a, variance_b = blurred(a_NHW.square()) - mean_a.square(), blurred(b_NHW.square()) - mean_b.square()
    covariance = blurred(a_NHW * b_NHW) - mean_a * mean_b
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    found = similar / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))
    return found.reshape(made_BCTHW.shape[0], -1).mean(1)


def _weighed(x_NHW: Tensor, weights: list[float], dim: int) -> Tensor:
    """Weighted sums of neighbours along a side. Of 9 pictures of 256x256 SSIM takes 0.02 s of CPU so, and 0.26 with convolutions of one channel."""
    length = x_NHW.shape[dim] - len(weights) + 1
    total_NHW = x_NHW.narrow(dim, 0, length) * weights[0]
    for place, weight in enumerate(weights[1:], 1):
        total_NHW.add_(x_NHW.narrow(dim, place, length), alpha=weight)
    return total_NHW
