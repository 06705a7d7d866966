"""The signals of a shot, from what the pass over the video took down of it: each a number that a threshold can be set on.

What they mean, their ranges and sensible thresholds: docs/signals.md.

Shape legend: N frames looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.video.camera import Camera, camera_motion
from pipelines.video.detailed_sample import Look
from pipelines.video.frame_features import Series, runs
from pipelines.video.motion import Move
from pipelines.video.scale import Box

FROZEN = 0.5
"""The picture stands still while no block of the analysis picture differs by more than this from the frame before, in levels of 255:
a still encoded by x264 at crf 18 to 26 gives up to 0.4, at crf 34 rarely 1.6; a person who sits still 2 and more."""

REPEAT = 0.15
"""A frame repeats the one before when it also differs by less than this share of what its neighbours do: a repeat in compressed motion is
touched up, by 0.3 to 3 levels where the frames around it change by 6 to 20."""

MOVES = 2.0
"""Repeats are counted only where a frame within two differs by more than this: in a picture that hardly changes, any frame may seem one."""

FREEZE_S = 0.2
"""Repeats that last this long are a freeze; shorter ones are frames shown more than once: animation on twos and threes at 24 fps, pull-up."""


@dataclass(frozen=True)
class Signals:
    """What is measured of one shot; units and sources in docs/signals.md. None where there is nothing to measure.

    `crop` is (x0, y0, x1, y1) of the picture without bars, in displayed pixels.
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
    camera: Camera | None
    frozen_share: float | None
    duplicate_share: float | None
    flicker: float | None


def shot_signals(
    series: Series, moves: Sequence[Move] | None, looks: Sequence[Look], crop: Box, cut_in: float | None = None
) -> Signals:
    """Signals of a shot: the rows of its frames, the moves and looks within it (one look at least), and its box (`letterbox.crop_boxes`).

    None for the moves of a still image: what needs a second frame is None then. Means over moves are weighted by time; those over
    looks are not, for they are evenly spread. `cut_in` is the enlargement with which the shot continues the one before
    (`camera.cut_in`), if it does: its camera is "cut-in" where it would be "still".
    """
    assert looks, "a shot has at least one look"
    # The loop filter takes away blocks, and with them some of what passes for noise.
    native = [look for look in looks if look.filtered] or looks
    camera: Camera | None = None
    motion = local_motion = frozen_share = duplicate_share = None
    if moves is not None:
        camera = camera_motion(moves, series.time_base)
        camera = "cut-in" if cut_in is not None and camera == "still" else camera
        motion = _over_time(moves, [move.speed for move in moves])
        local_motion = _over_time(moves, [move.local for move in moves])
        frozen_share, duplicate_share = repeats(series)
    return Signals(
        luma=_mean([look.luma for look in looks]),
        contrast=_mean([look.contrast for look in looks]),
        clipped_black=_mean([look.clipped_black for look in looks]),
        clipped_white=_mean([look.clipped_white for look in looks]),
        sharpness=_mean([look.sharpness for look in looks]),
        colourfulness=_mean([look.colourfulness for look in looks]),
        noise=_mean_of_known([look.noise for look in native]),
        blockiness=_mean_of_known([look.blockiness for look in native]),
        crop=crop,
        motion=motion,
        local_motion=local_motion,
        camera=camera,
        frozen_share=frozen_share,
        duplicate_share=duplicate_share,
        flicker=flicker(series),
    )


def repeats(series: Series) -> tuple[float, float | None]:
    """(share of time in freezes, share of frames that repeat the one before outside of freezes).

    Freezes are told from all frames looked at, also those with others passed over between them. Repeats are counted among frames
    whose neighbour before was looked at, while the picture changes; None where there are none of these.
    """
    if len(series) < 2:
        return 0.0, None
    same_N = series.peak_N[1:] <= FROZEN
    seconds_N = np.diff(series.pts_N) * float(series.time_base)
    frozen_N = np.zeros(len(same_N), np.bool_)
    for start, end in runs(same_N):
        frozen_N[start:end] = float(seconds_N[start:end].sum()) >= FREEZE_S
    around_N = sliding_window_view(np.pad(series.peak_N[1:], 2), 5).max(axis=1)
    same_N |= series.peak_N[1:] <= REPEAT * around_N
    neighbours_N = (series.passed_over_N[1:] == 0) & ~frozen_N & (around_N > MOVES)
    n = int(np.count_nonzero(neighbours_N))
    duplicates = int(np.count_nonzero(neighbours_N & same_N)) / n if n else None
    return float(seconds_N[frozen_N].sum() / seconds_N.sum()), duplicates


def flicker(series: Series) -> float | None:
    """Mean of |m(k) - (m(k-1) + m(k+1)) / 2| over frames whose two neighbours were looked at, m the mean luma in [0, 1].

    The second difference in time: 0 for steady fades and drifts of exposure, the amplitude for light that goes up and down with every
    frame. Our own definition. None where no three neighbours were looked at.
    """
    whole_N = series.passed_over_N == 0
    middle_N = whole_N[1:-1] & whole_N[2:]
    if not middle_N.any():
        return None
    mean_N = series.luma_NHW.mean(axis=(1, 2), dtype=np.float64) / 255
    return float(np.abs(mean_N[1:-1] - (mean_N[:-2] + mean_N[2:]) / 2)[middle_N].mean())


def _over_time(moves: Sequence[Move], values: Sequence[float]) -> float:
    """Mean of values of moves, weighted by how long they take; 0 without moves, in shots of under a tenth of a second."""
    total = sum(move.end_pts - move.start_pts for move in moves)
    return (
        math.fsum(value * (move.end_pts - move.start_pts) for move, value in zip(moves, values, strict=True)) / total
        if total
        else 0.0
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
