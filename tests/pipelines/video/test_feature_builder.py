"""Features of frames against plain numpy, and the same whatever the size of the blocks they are measured in."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from cluster.arrays import Pixels, UInt8Array
from pipelines.video import feature_builder
from pipelines.video.feature_builder import FeatureBuilder, frame_changes
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.scale import YuvPlanes
from tests.support.images import soft_patches
from tests.support.videos import sliding


def half_size_luma(frames: Pixels) -> UInt8Array:
    """Return every second pixel of the red of frames of 256 x 144: `[N, 72, 128]`."""
    return np.ascontiguousarray(frames[:, ::2, ::2, 0])


def features_of(luma_NHW: UInt8Array) -> FrameFeatures:
    builder = FeatureBuilder(Fraction(1, 24), content_scores=False)
    for pts, luma in enumerate(luma_NHW):
        builder.push(pts, 0, YuvPlanes(luma, luma[::2, ::2], luma[1::2, 1::2]), None)
    return builder.features()


def test_frame_changes_against_plain_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 72, 128)).astype(np.uint8)
    change, residual, peak, cut_in_scale = frame_changes(images)
    plain = np.abs(np.diff(images.astype(np.float64), axis=0))
    assert change == pytest.approx(plain.mean(axis=(1, 2)), rel=1e-5)
    assert peak == pytest.approx(plain.reshape(4, 9, 8, 16, 8).mean(axis=(2, 4)).max(axis=(1, 2)), rel=1e-5)
    assert (residual <= change).all()
    assert np.isnan(cut_in_scale).all()


def test_motion_explains_a_pan_and_not_a_cut() -> None:
    pan = half_size_luma(sliding(2, 12.0))
    cut = np.stack([half_size_luma(sliding(1, 0, seed=seed))[0] for seed in (1, 2)])
    (pan_change,), (pan_residual,), _, _ = frame_changes(pan)
    (cut_change,), (cut_residual,), _, _ = frame_changes(cut)
    assert pan_residual < 0.35 * pan_change
    assert cut_residual > 0.6 * cut_change


def test_the_one_block_that_changes_is_the_peak() -> None:
    images = np.full((2, 72, 128), 100, np.uint8)
    images[1, 16:24, 40:48] = 110
    change, _, peak, _ = frame_changes(images)
    assert peak[0] == 10
    assert change[0] == pytest.approx(10 / 144)


@pytest.mark.slow
def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = half_size_luma(np.concatenate([sliding(30, 3.0), sliding(31, 5.0, seed=3)]))
    whole = features_of(images)
    for size in (1, 7, 60, 61):
        monkeypatch.setattr(feature_builder, "BLOCK_FRAMES", size)
        for name in ("pts_N", "luma_NHW", "chroma_N2hw", "change_N", "residual_N", "peak_N"):
            assert np.array_equal(getattr(features_of(images), name), getattr(whole, name)), (size, name)


def test_signatures_are_means_of_squares() -> None:
    images = half_size_luma(soft_patches(4, 1).repeat(2, axis=1).repeat(2, axis=2)[:, :144, :256])
    found = features_of(images).luma_NHW.astype(float)
    assert found == pytest.approx(images.reshape(4, 18, 4, 32, 4).mean(axis=(2, 4)), abs=0.51)
