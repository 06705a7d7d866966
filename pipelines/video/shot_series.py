"""Measurements of a shot in time order, compact enough to be stored: from them the signals of any span are computed.

A second of footage takes about half a kilobyte. `scan` stores the series of each shot, and `cut` computes the signals
of each clip over the clip's own span, without decoding anything.

Shape legend: N decoded frames, H height, W width of a frame's signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Float32Array, Int64Array
from pipelines.video.boxes import WHOLE_FRAME, FractionalBox, inner_pixels
from pipelines.video.detailed_sample import SampleValues
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.motion import PairMotion

MAX_FRAME_INTERVAL_S = Fraction(1, 2)
"""Longest interval of frames that counts as usual. A slide show with a frame per five seconds is frozen for most of the
time, whatever its frame rate is called."""


@dataclass(frozen=True, eq=False)
class FrameSeries:
    """The stored features of each decoded frame of a shot, in presentation order; all arrays have N entries.

    `skipped_N` and `peak_N` are those of `FrameFeatures`. `luma_N` is the mean luma inside the shot's crop, in [0, 1].
    """

    pts_N: Int64Array
    skipped_N: NDArray[np.int32]
    peak_N: Float32Array
    luma_N: Float32Array

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrameSeries):
            return NotImplemented
        names = ("pts_N", "skipped_N", "peak_N", "luma_N")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    @staticmethod
    def from_features(features: FrameFeatures, content: FractionalBox = WHOLE_FRAME) -> FrameSeries:
        """Return the series of a shot's frames, with luma inside the box `content` (shares of the frame's sides)."""
        _, height, width = features.luma_NHW.shape
        x0, y0, x1, y1 = inner_pixels(content, width, height)
        luma_N = features.luma_NHW[:, y0:y1, x0:x1].mean(axis=(1, 2), dtype=np.float64) / 255
        return FrameSeries(features.pts_N, features.skipped_N, features.peak_N, luma_N.astype(np.float32))


@dataclass(frozen=True)
class ShotSeries:
    """The measurements of one shot, in PTS; `end_pts` is exclusive.

    `frame_interval_pts` is the usual time from one frame of the source to the next. `motions` are those of pairs of
    frames inside the shot, None for a still image. `samples` has at least one detailed sample. `cut_in` is the
    enlargement with which the shot continues the one before (`camera.cut_in`), None if it does not. All are of the
    image without bars.
    """

    start_pts: int
    end_pts: int
    time_base: Fraction
    frame_interval_pts: float
    frames: FrameSeries
    motions: tuple[PairMotion, ...] | None
    samples: tuple[SampleValues, ...]
    cut_in: float | None = None

    def to_columns(self) -> dict[str, Any]:
        """Return the series as plain lists of numbers, which `from_columns` reads."""
        frames = {name: getattr(self.frames, f"{name}_N").tolist() for name in ("pts", "skipped", "peak", "luma")}
        return {
            "frame_interval_pts": self.frame_interval_pts,
            "frames": frames,
            "motions": None if self.motions is None else _by_field(PairMotion, self.motions),
            "samples": _by_field(SampleValues, self.samples),
            "cut_in": self.cut_in,
        }

    @staticmethod
    def from_columns(shot: Mapping[str, Any], time_base: Fraction) -> ShotSeries:
        """Return the series of a stored shot, which has the columns of `to_columns`, `start_pts` and `end_pts`."""
        frames = shot["frames"]
        return ShotSeries(
            shot["start_pts"],
            shot["end_pts"],
            time_base,
            shot["frame_interval_pts"],
            FrameSeries(
                np.array(frames["pts"], np.int64),
                np.array(frames["skipped"], np.int32),
                np.array(frames["peak"], np.float32),
                np.array(frames["luma"], np.float32),
            ),
            None if shot["motions"] is None else tuple(_from_fields(PairMotion, shot["motions"])),
            tuple(_from_fields(SampleValues, shot["samples"])),
            shot["cut_in"],
        )


def usual_frame_interval(features: FrameFeatures) -> float:
    """Return the median time from a frame to the next, in units of the time base, at most half a second of them.

    A source of one frame has that of half a second.
    """
    longest = float(MAX_FRAME_INTERVAL_S / features.time_base)
    if len(features) < 2:
        return longest
    return min(longest, float(np.median(np.diff(features.pts_N) / (features.skipped_N[1:] + 1))))


def motions_of_content(
    motions: Iterable[PairMotion], content: FractionalBox, width: int, height: int
) -> tuple[PairMotion, ...]:
    """Return motions of frames of `width` x `height`, counted over the box `content` and in its long sides.

    Bars never move: they only make means smaller, and the frame's long side longer than the image's.
    """
    if content == WHOLE_FRAME:
        return tuple(motions)
    x0, y0, x1, y1 = content
    area_share = (x1 - x0) * (y1 - y0)
    long_sides = max(width, height) / max((x1 - x0) * width, (y1 - y0) * height)

    def counted(motion: PairMotion) -> PairMotion:
        # Blocks of bars are always known. As in `motion.py`, at least half of the image's blocks count.
        blocks = motion.known_share / max(motion.known_share - (1 - area_share), area_share / 2)
        return dataclasses.replace(
            motion,
            speed=motion.speed * blocks * long_sides,
            local=motion.local * blocks * long_sides,
            pan=motion.pan * long_sides,
            tilt=motion.tilt * long_sides,
            known_share=min(1.0, motion.known_share / blocks / area_share),
        )

    return tuple(map(counted, motions))


def _by_field(kind: type[Any], items: Sequence[Any]) -> dict[str, list[Any]]:
    return {field.name: [getattr(item, field.name) for item in items] for field in dataclasses.fields(kind)}


def _from_fields(kind: type[Any], columns: Mapping[str, Sequence[Any]]) -> Iterable[Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    return (kind(**dict(zip(names, values, strict=True))) for values in zip(*(columns[n] for n in names), strict=True))
