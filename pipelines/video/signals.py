"""The signals of a shot: numbers that a threshold can be set on, from the measurements of its frames.

Their meanings, ranges and sensible thresholds are in docs/measures/signals.md.

Shape legend: N decoded frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.video.camera import CameraMotion, camera_motion
from pipelines.video.detailed_sample import DetailedSample
from pipelines.video.frame_features import FrameFeatures, true_runs
from pipelines.video.motion import PairMotion
from pipelines.video.scale import Box

MAX_FROZEN_CHANGE = 0.5
"""The image is frozen while no block of the analysis image differs by more than this from the frame before, in 8-bit
values. A still encoded by x264 at crf 18 to 26 gives up to 0.4, at crf 34 rarely 1.6; a person who sits still, 2 and
more."""

MAX_REPEAT_SHARE = 0.15
"""A frame also repeats the one before if it differs by at most this share of what its neighbours do. A repeat in
compressed motion is touched up, by 0.3 to 3 8-bit values where the frames around it change by 6 to 20."""

MIN_MOVING_CHANGE = 2.0
"""Repeats are counted only where a frame within two differs by more than this, in 8-bit values: in an image that hardly
changes, any frame may seem to repeat."""

MIN_FREEZE_S = 0.2
"""Repeats that last this long are a freeze. Shorter ones are frames shown more than once: animation on twos and threes
at 24 fps, pull-up."""


@dataclass(frozen=True)
class Signals:
    """The signals of one shot; units and sources are in docs/measures/signals.md.

    A signal is None where there is nothing to measure. `crop` is (x0, y0, x1, y1) of the image without bars, in pixels
    as displayed.
    """

    luma: float
    contrast: float
    clipped_black: float
    clipped_white: float
    sharpness: float
    colourfulness: float
    noise: float | None
    blockiness: float | None
    crop: Box
    motion: float | None
    local_motion: float | None
    camera: CameraMotion | None
    frozen_share: float | None
    duplicate_share: float | None
    flicker: float | None


def shot_signals(
    features: FrameFeatures,
    motions: Sequence[PairMotion] | None,
    samples: Sequence[DetailedSample],
    crop: Box,
    cut_in: float | None = None,
) -> Signals:
    """Return the signals of a shot, from the features, motions and detailed samples (at least one) of its frames.

    `crop` is the box of its image without bars. `motions` is None for a still image; signals that need a second frame
    are then None. Means over motions are weighted by time; those over samples are not, since samples are evenly spread.
    `cut_in` is the enlargement with which the shot continues the one before (`camera.cut_in`), if it does: its camera
    is then "cut-in" where it would be "still".
    """
    assert samples, "a shot has at least one detailed sample"
    # The loop filter removes blocks, and with them some of what is taken for noise.
    filtered = [sample for sample in samples if sample.loop_filtered] or samples
    camera: CameraMotion | None = None
    motion = local_motion = frozen_share = duplicate_share = None
    if motions is not None:
        camera = camera_motion(motions, features.time_base)
        camera = "cut-in" if cut_in is not None and camera == "still" else camera
        motion = _mean_over_time(motions, [one.speed for one in motions])
        local_motion = _mean_over_time(motions, [one.local for one in motions])
        frozen_share, duplicate_share = repeat_shares(features)
    return Signals(
        luma=_mean([sample.luma for sample in samples]),
        contrast=_mean([sample.contrast for sample in samples]),
        clipped_black=_mean([sample.clipped_black for sample in samples]),
        clipped_white=_mean([sample.clipped_white for sample in samples]),
        sharpness=_mean([sample.sharpness for sample in samples]),
        colourfulness=_mean([sample.colourfulness for sample in samples]),
        noise=_mean_of_known([sample.noise for sample in filtered]),
        blockiness=_mean_of_known([sample.blockiness for sample in filtered]),
        crop=crop,
        motion=motion,
        local_motion=local_motion,
        camera=camera,
        frozen_share=frozen_share,
        duplicate_share=duplicate_share,
        flicker=flicker(features),
    )


def repeat_shares(features: FrameFeatures) -> tuple[float, float | None]:
    """Return (share of time in freezes, share of frames outside freezes that repeat the one before).

    Freezes are found among all decoded frames, also where frames between them were skipped. Repeats are counted among
    frames whose previous frame was decoded, while the image changes; None where there are none of these.
    """
    if len(features) < 2:
        return 0.0, None
    same_N = features.peak_N[1:] <= MAX_FROZEN_CHANGE
    seconds_N = np.diff(features.pts_N) * float(features.time_base)
    frozen_N = np.zeros(len(same_N), np.bool_)
    for start, end in true_runs(same_N):
        frozen_N[start:end] = float(seconds_N[start:end].sum()) >= MIN_FREEZE_S
    around_N = sliding_window_view(np.pad(features.peak_N[1:], 2), 5).max(axis=1)
    same_N |= features.peak_N[1:] <= MAX_REPEAT_SHARE * around_N
    counted_N = (features.skipped_N[1:] == 0) & ~frozen_N & (around_N > MIN_MOVING_CHANGE)
    n = int(np.count_nonzero(counted_N))
    duplicate_share = int(np.count_nonzero(counted_N & same_N)) / n if n else None
    return float(seconds_N[frozen_N].sum() / seconds_N.sum()), duplicate_share


def flicker(features: FrameFeatures) -> float | None:
    """Return the mean of |m(k) - (m(k-1) + m(k+1)) / 2| over frames whose two neighbours were decoded.

    m is the mean luma of a frame, in [0, 1]. This is half the second difference in time: 0 for steady fades and drifts
    of exposure, the peak-to-peak amplitude for light that alternates with every frame. The definition is ours. None
    where no three neighbours were decoded.
    """
    has_previous_N = features.skipped_N == 0
    has_both_N = has_previous_N[1:-1] & has_previous_N[2:]
    if not has_both_N.any():
        return None
    mean_N = features.luma_NHW.mean(axis=(1, 2), dtype=np.float64) / 255
    return float(np.abs(mean_N[1:-1] - (mean_N[:-2] + mean_N[2:]) / 2)[has_both_N].mean())


def _mean_over_time(motions: Sequence[PairMotion], values: Sequence[float]) -> float:
    """Return the mean of values of motions, weighted by duration.

    It is 0 without motions, in shots of under a tenth of a second.
    """
    total_pts = sum(motion.end_pts - motion.start_pts for motion in motions)
    if not total_pts:
        return 0.0
    weighted = (value * (motion.end_pts - motion.start_pts) for motion, value in zip(motions, values, strict=True))
    return math.fsum(weighted) / total_pts


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
