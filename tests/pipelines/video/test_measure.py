from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipelines.video import measure
from pipelines.video.frame_features import Series
from pipelines.video.measure import Rows, differences
from tests.pipelines.video.test_scan import patches
from tests.support.videos import sliding


def luma(pictures: np.ndarray) -> np.ndarray:
    """Every second pixel of the red of frames of 256 x 144: 128 x 72."""
    return np.ascontiguousarray(pictures[:, ::2, ::2, 0])


def rows_of(pictures: np.ndarray) -> Series:
    rows = Rows(Fraction(1, 24), scores=False)
    for pts, picture in enumerate(pictures):
        rows.push(pts, 0, picture, picture[::2, ::2], picture[1::2, 1::2], None)
    return rows.series()


def test_differences_against_plain_numpy() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 72, 128)).astype(np.uint8)
    change, residual, peak, nearer = differences(pictures)
    plain = np.abs(np.diff(pictures.astype(np.float64), axis=0))
    assert change == pytest.approx(plain.mean(axis=(1, 2)), rel=1e-5)
    assert peak == pytest.approx(plain.reshape(4, 9, 8, 16, 8).mean(axis=(2, 4)).max(axis=(1, 2)), rel=1e-5)
    assert (residual <= change).all()
    assert np.isnan(nearer).all()


def test_motion_explains_a_pan_and_not_a_cut() -> None:
    pan = luma(sliding(2, 12.0))
    cut = np.stack([luma(sliding(1, 0, seed=1))[0], luma(sliding(1, 0, seed=2))[0]])
    (pan_change,), (pan_residual,), _, _ = differences(pan)
    (cut_change,), (cut_residual,), _, _ = differences(cut)
    assert pan_residual < 0.35 * pan_change
    assert cut_residual > 0.6 * cut_change


def test_the_one_block_that_changes_is_the_peak() -> None:
    still = np.full((2, 72, 128), 100, np.uint8)
    still[1, 16:24, 40:48] = 110
    change, _, peak, _ = differences(still)
    assert peak[0] == 10
    assert change[0] == pytest.approx(10 / 144)


def test_blocks_of_frames_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = luma(np.concatenate([sliding(30, 3.0), sliding(31, 5.0, seed=3)]))
    whole = rows_of(pictures)
    for size in (1, 7, 60, 61):
        monkeypatch.setattr(measure, "BLOCK_FRAMES", size)
        for name in ("pts_N", "luma_NHW", "chroma_N2hw", "change_N", "residual_N", "peak_N"):
            assert np.array_equal(getattr(rows_of(pictures), name), getattr(whole, name)), (size, name)


def test_signatures_are_means_of_squares() -> None:
    pictures = luma(patches(4, 1).repeat(2, axis=1).repeat(2, axis=2)[:, :144, :256])
    found = rows_of(pictures).luma_NHW.astype(float)
    assert found == pytest.approx(pictures.reshape(4, 18, 4, 32, 4).mean(axis=(2, 4)), abs=0.51)
