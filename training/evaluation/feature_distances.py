"""Distances between two sets of clips by the features of a network: Fréchet and kernel distance.

Both need many clips: the Fréchet distance falls with the number of clips, so compare only distances of equal numbers.
Shape suffixes: N clips, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cluster import storage
from cluster.arrays import Float64Array, Pixels
from training.pixels import from_uint8

Features = Callable[[Pixels], list[float]]
"""A function from frames, uint8 `[T, H, W, 3]`, to features."""

MIN_CLIPS = 2
"""Clips of a set below which no distance is computed."""


def open_features(uri: str) -> Features:
    """Return the features of a TorchScript network, on the CPU. Raises `ValueError` if the file cannot be loaded."""
    try:
        network = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(storage.read_bytes(uri)), map_location="cpu"
        ).eval()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"evaluate.features: {uri} is no TorchScript file that can be loaded: {error}") from error

    @torch.inference_mode()
    def features(frames_THWC: Pixels) -> list[float]:
        video_BCTHW = from_uint8(torch.from_numpy(frames_THWC.copy())).permute(3, 0, 1, 2)[None]
        found = network(video_BCTHW).float().flatten()
        return [round(value, 6) for value in found.tolist()]

    return features


def distances(generated: Sequence[Sequence[float]], real: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Return both distances with the numbers of clips; None if a set has fewer than `MIN_CLIPS`."""
    if min(len(generated), len(real)) < MIN_CLIPS:
        return None
    a_ND, b_ND = np.array(generated, np.float64), np.array(real, np.float64)
    return {
        "frechet": frechet_distance(a_ND, b_ND),
        "kernel": kernel_distance(a_ND, b_ND),
        "generated": len(a_ND),
        "real": len(b_ND),
    }


def frechet_distance(a_ND: Float64Array, b_ND: Float64Array) -> float:
    """Return the squared Fréchet distance between normal distributions fitted to two sets (Heusel et al. 2017, FID).

    |mean a - mean b|² + trace(A + B - 2 (A B)^(1/2)) of their covariances A and B.
    """
    difference_D = a_ND.mean(0) - b_ND.mean(0)
    # trace((A B)^(1/2)) is the sum of the singular values of X Yᵀ for A = Xᵀ X and B = Yᵀ Y.
    # Rotations of the rows of X and Y change none of it, so the triangles of their QR decompositions take their place.
    _, x = np.linalg.qr((a_ND - a_ND.mean(0)) / np.sqrt(len(a_ND) - 1))
    _, y = np.linalg.qr((b_ND - b_ND.mean(0)) / np.sqrt(len(b_ND) - 1))
    cross = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return float(max(0.0, difference_D @ difference_D + (x**2).sum() + (y**2).sum() - 2 * cross))


def kernel_distance(a_ND: Float64Array, b_ND: Float64Array) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018, KID).

    It may be negative for sets that are alike.
    """
    width = a_ND.shape[1]

    def kernel(x_ND: Float64Array, y_ND: Float64Array) -> Float64Array:
        return np.asarray((x_ND @ y_ND.T / width + 1) ** 3)

    def mean_of_pairs(x_ND: Float64Array) -> float:
        values = kernel(x_ND, x_ND)
        return float((values.sum() - np.trace(values)) / (len(x_ND) * (len(x_ND) - 1)))

    return mean_of_pairs(a_ND) + mean_of_pairs(b_ND) - 2 * float(kernel(a_ND, b_ND).mean())
