"""Read sampled spans of videos: frames at a constant rate, at one size, cropped.

Shape legend: T frames, H height, W width, 3 colours (red, green, blue).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from cluster.arrays import Pixels
from pipelines.video.decode import DecodedFrame, DecodeError, Video, file_name, open_video
from pipelines.video.scale import Box, centre_crop, crop_scaled, scaled_size
from pipelines.video.still_images import read_image, resize_image

Kind = Literal["video", "image"]


@dataclass(frozen=True)
class FrameGrid:
    """The frames to sample from a span: how many per second, how many in all, and their size in pixels."""

    fps: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class SampledSpan:
    """Sampled frames: `frames` is uint8 `[T, H, W, 3]` RGB, `pts` has the PTS of the source frame behind each of them.

    `crop` is the box kept: (x0, y0, x1, y1) in pixels of the frame as displayed, with exclusive ends.
    """

    frames: Pixels
    pts: tuple[int, ...]
    crop: Box


@dataclass(frozen=True)
class SpanRequest:
    """A span to sample, in PTS with an exclusive end, its grid, and the box to keep of each frame.

    `crop` is (x0, y0, x1, y1) in pixels as displayed. None is the largest box around the centre of the frame that has
    the grid's aspect.
    """

    start_pts: int
    end_pts: int
    grid: FrameGrid
    crop: Box | None = None


def read_span(
    uri: str, start_pts: int, end_pts: int, grid: FrameGrid, crop: Box | None = None, kind: Kind = "video"
) -> SampledSpan:
    """Decode the frames of a span, sampled at `grid.fps` from `start_pts`, as RGB.

    Frame k is the one shown at start + k / fps: the last frame whose PTS is not later. That time is rounded to the time
    base, as the container rounded its PTS; before the first frame of the file it shows the first. `end_pts` is
    exclusive: no frame at or after it is used. Each frame is scaled (antialiased) to cover the size and cropped around
    its centre, or to `crop`, which is (x0, y0, x1, y1) in pixels as displayed.

    A file of kind `image` is a span of one frame, whatever the PTS and its name. Raises `DecodeError` for a file that
    cannot be decoded or has no frame in the span, and `ValueError` for a span too short for the grid.
    """
    return read_spans(uri, [SpanRequest(start_pts, end_pts, grid, crop)], kind)[0]


def read_spans(uri: str, requests: Sequence[SpanRequest], kind: Kind = "video") -> list[SampledSpan]:
    """Return the spans that `read_span` returns for each request, decoding the file once.

    Everything from the first start to the last end is decoded, so requests should follow each other closely.
    """
    for request in requests:
        grid = request.grid
        if grid.frames < 1 or grid.width < 1 or grid.height < 1 or not grid.fps > 0:
            raise ValueError(
                f"{grid.frames} frames of {grid.width}x{grid.height} at {grid.fps:g} fps: all of them must be positive"
            )
    if kind == "image":
        return _sample_image(uri, requests)
    start_pts = min(request.start_pts for request in requests)
    with open_video(uri) as video:
        if start_pts <= video.info.start_pts or video.seek(start_pts):
            return _sample(video, requests)
    # The container cannot seek: decode from the start.
    with open_video(uri) as video:
        return _sample(video, requests)


def target_pts(start_pts: int, end_pts: int, fps: float, frames: int, time_base: Fraction) -> list[int]:
    """Return the PTS at which a span is sampled; the last one is kept inside the span.

    Raises `ValueError` if the span ends before the last of them, which may be `end_pts` but not after it.
    """
    step = 1 / (Fraction(fps).limit_denominator(1001) * time_base)
    # Half up, so that 66.67 ms finds the frame that a time base of 1 ms stores at 67.
    targets = [start_pts + int(k * step + Fraction(1, 2)) for k in range(frames)]
    if end_pts <= start_pts or targets[-1] > end_pts:
        span_s = float((end_pts - start_pts) * time_base)
        raise ValueError(
            f"{frames} frames at {fps:g} fps need {(frames - 1) / fps:g} s, but the span has {span_s:g} s; "
            "ask for fewer frames"
        )
    return [min(target, end_pts - 1) for target in targets]


def _sample_image(uri: str, requests: Sequence[SpanRequest]) -> list[SampledSpan]:
    for request in requests:
        if request.grid.frames != 1:
            raise ValueError(f"{request.grid.frames} frames of {file_name(uri)}: an image has 1")
    image = read_image(uri)
    found = []
    for request in requests:
        grid = request.grid
        box = request.crop or centre_crop(image.width, image.height, grid.width, grid.height)
        found.append(SampledSpan(resize_image(image, box, grid.width, grid.height)[None], (0,), box))
    return found


class _SpanSampler:
    """The frames of one request, filled in as a video is decoded."""

    def __init__(self, video: Video, request: SpanRequest) -> None:
        info, grid = video.info, request.grid
        self._video, self._grid = video, grid
        self.start_pts, self.end_pts = request.start_pts, request.end_pts
        self._targets = target_pts(request.start_pts, request.end_pts, grid.fps, grid.frames, info.time_base)
        self._box = request.crop or centre_crop(info.width, info.height, grid.width, grid.height)
        self._size = scaled_size(info.width, info.height, self._box, grid.width, grid.height)
        self._output: Pixels = np.empty((grid.frames, grid.height, grid.width, 3), np.uint8)
        self._used: list[int] = []

    @property
    def complete(self) -> bool:
        return len(self._used) == self._grid.frames

    def fill(self, shown: DecodedFrame, until_pts: int) -> None:
        """Copy a frame to every target before `until_pts`, when the next frame is shown."""
        info, grid, first = self._video.info, self._grid, len(self._used)
        while not self.complete and self._targets[len(self._used)] < until_pts:
            self._used.append(shown.pts)
        if len(self._used) > first:
            self._output[first : len(self._used)] = crop_scaled(
                self._video.to_array(shown.frame, *self._size),
                self._box,
                info.width,
                info.height,
                grid.width,
                grid.height,
            )

    def result(self) -> SampledSpan:
        return SampledSpan(self._output, tuple(self._used), self._box)


def _sample(video: Video, requests: Sequence[SpanRequest]) -> list[SampledSpan]:
    samplers = [_SpanSampler(video, request) for request in requests]
    shown: DecodedFrame | None = None
    last_end_pts = max(sampler.end_pts for sampler in samplers)
    decoded: DecodedFrame | None = None
    for decoded in video.decoded_frames():
        for sampler in samplers:
            if shown is not None and shown.pts < sampler.end_pts:
                sampler.fill(shown, min(decoded.pts, sampler.end_pts))
        if all(sampler.complete for sampler in samplers) or decoded.pts >= last_end_pts:
            break
        shown = decoded
    for sampler in samplers:
        if shown is None or (not sampler.complete and shown.pts >= sampler.end_pts):
            raise DecodeError(f"{file_name(video.uri)}: no frame before PTS {sampler.end_pts}")
        sampler.fill(shown, sampler.end_pts)
        if shown.duration and shown.pts + shown.duration <= sampler.start_pts and decoded is shown:
            raise DecodeError(
                f"{file_name(video.uri)}: the frames end at PTS {shown.pts + shown.duration}, "
                f"before the span from {sampler.start_pts}"
            )
    return [sampler.result() for sampler in samplers]
