"""What the pass takes down of a stretch: a row for each frame looked at, moves between frames, and a closer look now and then.

Shape legend: H height, W width of the analysis picture, lower-case letters for its chroma, half of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from operator import itemgetter

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from cluster.arrays import Pixels
from pipelines.video.camera import cut_in
from pipelines.video.decode import DecodedFrame, DecodeError, Video, VideoPacket
from pipelines.video.detailed_sample import Look, take_look
from pipelines.video.frame_features import SIGNATURE_SHRINK, Series
from pipelines.video.frame_hashes import Moments, Still, still
from pipelines.video.gop_segments import Decoders, Seen, Stretch, Window, decode, decode_windows, group_start
from pipelines.video.luma import BLOCK, Floats, block_means
from pipelines.video.motion import MotionMeter, Move, unexplained
from pipelines.video.scale import native_luma, packed_array, plane, rescale, to_upright
from pipelines.video.shot_boundaries import PYSCENEDETECT, ContentScore, find_boundaries
from pipelines.video.still_images import encode_jpeg, fit_long_side
from pipelines.video.transnet import FRAME_SHAPE

ANALYSIS_AREA = 128 * 72
"""Pixels of the picture that every frame is scaled to: scaling 480p to it costs 0.05 ms, and optical flow on it another 0.05 ms."""

LOOK_AREA = 256 * 144
"""Pixels of the picture a look is taken at."""

LOOK_EVERY_S = 1.0
LOOK_AGAIN_S = 0.3
NEW_PICTURE = 20.0
"""A look is taken each second, and 0.3 s after the last one at the earliest where the picture has changed by so many levels of 255
since that a new shot may have begun."""

WARP_FROM = 3.0
"""Mean change, in levels of 255, from which it is asked how much of it motion explains; with less, no shot begins."""

CUT_FROM = 12.0
"""Change that motion does not explain, in levels, from which it is asked whether a cut only went nearer, which takes 1 ms; it must also
be twice that of the frames beside it."""

BLOCK_FRAMES = 256
"""Frames measured at a time: 3.5 MB of small pictures."""


@dataclass(frozen=True)
class View:
    """A look at a frame, and its thumbnail as a JPEG file (empty where none are wanted)."""

    look: Look
    thumbnail: bytes

    @property
    def pts(self) -> int:
        return self.look.pts


@dataclass(frozen=True)
class Part:
    """What is known of a stretch, or of several in a row.

    `stills` are the frames shown at the moments that are hashed. `last` is the PTS and the duration of the last frame, 0 if not known.
    `payload` are the digests of the packets, which whoever reads them adds.
    """

    series: Series
    moves: tuple[Move, ...]
    views: tuple[View, ...]
    stills: tuple[Still, ...]
    last: tuple[int, int]
    payload: bytes = b""

    @staticmethod
    def joined(parts: list[Part]) -> Part:
        """Parts of one video in order as one; the list is emptied, so that no frame of a film is held twice.

        A frame in which two parts meet is taken from the first, which knows the one before it; of views and stills of it there may be two.
        """
        moves: list[Move] = []
        views: list[View] = []
        stills: list[Still] = []
        firsts = [part.series.pts_N[0] for part in parts]
        lasts = [None, *(part.series.pts_N[-1] for part in parts)]
        meets = [first == last for first, last in zip(firsts, lasts, strict=False)]
        n_frames = sum(len(part.series) for part in parts) - sum(meets)
        last, payload = parts[-1].last, b"".join(part.payload for part in parts)
        parts.reverse()

        def rows() -> Iterator[Series]:
            for meet in meets:
                part = parts.pop()
                known = {view.pts for view in views[-1:]}
                shown = {item.pts for item in stills[-1:]}
                moves.extend(part.moves)
                views.extend(view for view in part.views if view.pts not in known)
                stills.extend(item for item in part.stills if item.pts not in shown)
                yield part.series.rows(slice(1, None)) if meet else part.series

        series = Series.joined(rows(), n_frames)
        return Part(series, tuple(moves), tuple(views), tuple(stills), last, payload)


class Meter:
    """Measures the frames of one video. It holds what scaling prepares, and nothing of any frame."""

    def __init__(
        self, video: Video, detector: str, threshold: float | None, min_shot_s: float, thumbnail_px: int
    ) -> None:
        self._video = video
        self._find = (detector, threshold, min_shot_s)
        self.whole = detector in PYSCENEDETECT
        """Whether every frame is wanted: PySceneDetect compares neighbours, and its thresholds are made for these."""
        self._thumbnail_px = thumbnail_px
        self._size = picture_size(video.info.height, video.info.width, ANALYSIS_AREA)
        self._look_size = picture_size(video.info.height, video.info.width, LOOK_AREA)
        self._analysis, self._look, self._bgr = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self._decoders = Decoders(video)
        self._moments = Moments(video.info.start_pts, video.info.time_base)

    def stretch(self, stretch: Stretch) -> Part | None:
        """Decode and measure a stretch; where frames that were passed over could tell where a shot ends, these too.

        None for a stretch without a frame. Raises `DecodeError`.
        """
        time_base = self._video.info.time_base
        motion, rows = MotionMeter(time_base), self._rows()
        moves: list[Move] = []
        views: list[View] = []
        stills: list[Still] = []
        looked_HW: Pixels | None = None
        luma_HW: Pixels | None = None
        picture: DecodedFrame | None = None
        number = 0
        for seen in decode(self._decoders, stretch):
            before, number = number, self._moments.before(seen.picture.pts)
            if picture is not None and luma_HW is not None and number > before:
                # The frame before was shown at a moment.
                stills.append(still(picture.pts, luma_HW))
            picture = seen.picture
            luma_HW = rows.push(picture.pts, seen.passed_over, *self._planes(picture.frame))
            if (move := motion.push(picture.pts, luma_HW)) is not None:
                moves.append(move)
            if looked_HW is None or self._wants_look(
                float((picture.pts - views[-1].pts) * time_base), looked_HW, luma_HW
            ):
                views.append(self._view(seen))
                looked_HW = luma_HW
        if picture is None or luma_HW is None:
            return None
        # The last frame of a video is shown until its end; of others the next stretch knows.
        stills.append(still(picture.pts, luma_HW))
        series = rows.series()
        if (packets := stretch.kept) is not None:
            windows = find_boundaries(series, *self._find).uncertain
            groups = groupby(windows, lambda window: group_start(packets, window[0]))
            series = series.with_windows(
                [closer for start, group in groups for closer in self.windows(packets[start:], list(group))]
            )
        return Part(series, tuple(moves), tuple(views), tuple(stills), (picture.pts, picture.duration))

    def windows(self, packets: Iterable[VideoPacket], windows: Sequence[Window]) -> list[Series]:
        """Every frame of some windows, each as a series. `packets` begin with a key frame at or before the first window."""
        found = []
        for _, decoded in groupby(decode_windows(self._decoders, packets, windows), itemgetter(0)):
            rows = self._rows()
            for _, picture in decoded:
                rows.push(picture.pts, 0, *self._planes(picture.frame))
            found.append(rows.series())
        return found

    def view_of(self, packets: Iterable[VideoPacket], pts: int) -> View:
        """A view of one frame. `packets` begin with a key frame at or before it."""
        for _, picture in decode_windows(self._decoders, packets, [(pts, pts)]):
            return self._view(Seen(picture, 0, filtered=picture.frame.key_frame))
        raise DecodeError(f"{self._video.uri}: the frame at PTS {pts} is not there when it is decoded again")

    def colours(self, packets: Iterable[VideoPacket], start_pts: int, end_pts: int) -> tuple[NDArray[np.int64], Pixels]:
        """PTS `[N]` of all frames of a span, `end_pts` exclusive, and the frames as TransNetV2 wants them: uint8 RGB `[N, 27, 48, 3]`.

        `packets` begin with a key frame at or before the span. No frame is copied at its full size.
        """
        height, width, _ = FRAME_SHAPE
        pts: list[int] = []
        pictures: list[Pixels] = []
        for _, picture in decode_windows(self._decoders, packets, [(start_pts, end_pts - 1)]):
            pts.append(picture.pts)
            pictures.append(self._video.to_array(picture.frame, width, height))
        return np.array(pts, np.int64), np.stack(pictures) if pictures else np.empty((0, *FRAME_SHAPE), np.uint8)

    def _rows(self) -> Rows:
        return Rows(self._video.info.time_base, scores=self.whole)

    def _planes(self, frame: VideoFrame) -> tuple[Pixels, Pixels, Pixels, Pixels | None]:
        """Luma and chroma of the analysis picture, and its colours for PySceneDetect if these are wanted."""
        info = self._video.info
        small = self._video.to_yuv420p(self._analysis, frame, *self._size)
        y, u, v = upright_planes(small, info.rotation_deg)
        if not self.whole:
            return y, u, v, None
        return (
            y,
            u,
            v,
            to_upright(
                packed_array(rescale(self._bgr, small, small.width, small.height, "bgr24", None)), info.rotation_deg
            ),
        )

    def _wants_look(self, since_s: float, looked_HW: Pixels, luma_HW: Pixels) -> bool:
        if since_s < LOOK_AGAIN_S:
            return False
        return since_s >= LOOK_EVERY_S or cv2.norm(looked_HW, luma_HW, cv2.NORM_L1) >= NEW_PICTURE * luma_HW.size

    def _view(self, seen: Seen) -> View:
        info, frame = self._video.info, seen.picture.frame
        large = self._video.to_yuv420p(self._look, frame, *self._look_size)
        look = take_look(
            seen.picture.pts,
            *upright_planes(large, info.rotation_deg),
            native_luma(frame),
            seen.filtered,
            info.bit_depth,
        )
        if not self._thumbnail_px:
            return View(look, b"")
        return View(
            look, encode_jpeg(self._video.to_array(large, *fit_long_side(info.width, info.height, self._thumbnail_px)))
        )


class Rows:
    """Gathers frames and measures them many at a time, so that what a frame costs is its decoding and its scaling."""

    def __init__(self, time_base: Fraction, scores: bool) -> None:
        self._time_base = time_base
        self._content = ContentScore() if scores else None
        self._blocks: list[Series] = []
        self._pts: list[int] = []
        self._passed_over: list[int] = []
        self._scores: list[float] = []
        self._stacks: list[Pixels] = []

    def push(
        self, pts: int, passed_over: int, luma_HW: Pixels, cb_hw: Pixels, cr_hw: Pixels, bgr_HW3: Pixels | None
    ) -> Pixels:
        """Take a frame; returns its luma, which stays as it is."""
        pictures = (luma_HW, cb_hw, cr_hw)
        if not self._stacks:
            self._stacks = [np.empty((BLOCK_FRAMES + 1, *picture.shape), np.uint8) for picture in pictures]
            # One row before the block is the frame before, which its first is compared with.
            self._stacks[0][0] = luma_HW
        elif len(self._pts) == BLOCK_FRAMES:
            self._measure()
            # New ones, for the rows of the old are in use.
            fresh = [np.empty_like(stack) for stack in self._stacks]
            fresh[0][0] = self._stacks[0][BLOCK_FRAMES]
            self._stacks = fresh
        self._pts.append(pts)
        self._passed_over.append(passed_over)
        self._scores.append(float("nan") if self._content is None or bgr_HW3 is None else self._content.push(bgr_HW3))
        row = len(self._pts)
        for stack, picture in zip(self._stacks, pictures, strict=True):
            stack[row] = picture
        kept: Pixels = self._stacks[0][row]
        return kept

    def series(self) -> Series:
        """All frames that were pushed, at least one."""
        self._measure()
        return Series.joined(self._blocks, sum(map(len, self._blocks)))

    def _measure(self) -> None:
        assert self._pts, "no frame was pushed"
        luma_NHW, cb_Nhw, cr_Nhw = (stack[: len(self._pts) + 1] for stack in self._stacks)
        chroma_N2hw = np.stack([_signatures(cb_Nhw[1:]), _signatures(cr_Nhw[1:])], axis=1)
        changes = differences(luma_NHW)
        self._blocks.append(
            Series(
                self._time_base,
                np.array(self._pts, np.int64),
                np.array(self._passed_over, np.int32),
                _signatures(luma_NHW[1:]),
                chroma_N2hw,
                *changes,
                np.array(self._scores, np.float32),
            )
        )
        self._pts, self._passed_over, self._scores = [], [], []


def differences(luma_NHW: Pixels) -> tuple[Floats, Floats, Floats, Floats]:
    """(change, residual, peak, nearer) of all pictures but the first against the one before: see `Series`."""
    n, height, width = luma_NHW.shape
    # One tall picture: OpenCV takes as long for 300 frames in one call as for 30 in a call each.
    flat = luma_NHW.reshape(n * height, width)
    blocks_NIJ = block_means(cv2.absdiff(flat[height:], flat[:-height])).reshape(n - 1, height // BLOCK, width // BLOCK)
    change_N, peak_N = blocks_NIJ.mean(axis=(1, 2)), blocks_NIJ.max(axis=(1, 2))
    residual_N = change_N.copy()
    for i in np.flatnonzero(change_N >= WARP_FROM):
        residual_N[i] = min(change_N[i], unexplained(luma_NHW[i], luma_NHW[i + 1]))
    nearer_N = np.full(n - 1, np.nan, np.float32)
    beside_N = np.maximum(np.append(residual_N[1:], 0), np.insert(residual_N[:-1], 0, 0))
    for i in np.flatnonzero((residual_N >= CUT_FROM) & (residual_N >= 2 * beside_N)):
        nearer_N[i] = cut_in(luma_NHW[i], luma_NHW[i + 1]) or np.nan
    return change_N, residual_N, peak_N, nearer_N


def picture_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(width, height) of about an area, the aspect kept, in multiples of 8 and at least 32."""
    scale = (area / (height * width)) ** 0.5 / 8
    return max(4, round(width * scale)) * 8, max(4, round(height * scale)) * 8


def upright_planes(small: VideoFrame, rotation_deg: int) -> tuple[Pixels, Pixels, Pixels]:
    """Luma and chroma of a yuv420p frame."""
    y, u, v = (to_upright(plane(small, i), rotation_deg) for i in range(3))
    return y, u, v


def _signatures(stack_NHW: Pixels) -> Pixels:
    """Each picture of a stack averaged over the squares of a signature, which divide its sides."""
    n, height, width = stack_NHW.shape
    size = width // SIGNATURE_SHRINK, n * height // SIGNATURE_SHRINK
    flat = cv2.resize(stack_NHW.reshape(n * height, width), size, interpolation=cv2.INTER_AREA)
    return np.asarray(flat, np.uint8).reshape(n, height // SIGNATURE_SHRINK, width // SIGNATURE_SHRINK)
