"""Where one shot ends and the next begins, decided from the signatures of a series.

`signature` is our own detector: cuts here, fades and dissolves in `gradual.py`. `content` and `adaptive` are PySceneDetect's,
its own decision code fed with recorded scores. `transnetv2` is ours, whose doubtful candidates `transnet.py` settles.

Shape legend: N frames of a series, C candidates for a cut, W frames on either side of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import FlashFilter, SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from pipelines.video.frame_features import Series
from pipelines.video.gradual_transitions import Ramp, find_dissolves, find_fades
from pipelines.video.signatures import Doubles, Ints, Track

DetectorName = Literal["signature", "transnetv2", "content", "adaptive"]
Kind = Literal["cut", "dissolve", "fade"]

PYSCENEDETECT = frozenset({"content", "adaptive"})
"""Detectors that want the recorded content score of every frame."""

THRESHOLD = 0.5
"""Least score of a boundary; scores are probabilities fitted to edits with known transitions."""
POSSIBLE = 0.02
"""Where frames were passed over, a candidate with at least this score is looked at frame by frame."""
DOUBT = (0.02, 0.98)
"""Scores in between are doubtful: what the network is asked about."""

SIDE = 4
"""Frames on either side that are compared across a candidate: flashes last 1 to 3 frames, the shortest shots wanted 7 (0.3 s at 24 fps)."""
LEAST_STEP = 4.0
"""Levels between neighbours below which there is no cut: two dim shots by a fire are 9 apart, noise and coding 0.5 to 2."""
LEAST_NEW = 0.05
"""1 - correlation of two frames below which the light has changed, not the picture: a lamp measures 0.00 to 0.02, cuts 0.3 to 1.3."""
MARGIN = 6
"""Frames around a candidate that are decoded, so that both of its sides are judged frame by frame."""


@dataclass(frozen=True)
class Boundary:
    """A transition between two shots, or into or out of a plain colour at the ends of a file.

    A cut: `start_pts` and `end_pts` are both the first frame of the new shot. A dissolve or fade: `start_pts` is the first mixed
    or plain frame, `end_pts` the first pure frame of the next shot (the end of the last frame where the file ends first).
    `score` is a probability in [0, 1]; PySceneDetect's detectors give 1.
    """

    kind: Kind
    start_pts: int
    end_pts: int
    score: float


@dataclass(frozen=True)
class Found:
    """Boundaries in time order, not overlapping.

    `uncertain` are spans of PTS, from the frame before to the frame after, in which frames passed over must be decoded to place
    or decide a boundary. `doubtful` are the candidates that stay between yes and no, among them some of the boundaries.
    """

    boundaries: tuple[Boundary, ...]
    uncertain: tuple[tuple[int, int], ...] = ()
    doubtful: tuple[Boundary, ...] = ()


def find_boundaries(series: Series, detector: str, threshold: float | None, min_shot_s: float) -> Found:
    """Find the boundaries of a series of N frames.

    `threshold` None is 0.5 for `signature` and `transnetv2` (a probability), 27 for `content` (mean HSV distance) and 3.0 for
    `adaptive` (times the change around): PySceneDetect's defaults. Shots between boundaries last `min_shot_s` seconds at
    least: of two boundaries that are closer, the one with the lower score goes. Raises `ValueError` for an unknown detector.
    """
    if detector in PYSCENEDETECT:
        return Found(_recorded(series, detector, threshold, min_shot_s))
    if detector not in ("signature", "transnetv2"):
        raise ValueError(f"detector {detector!r}: it must be signature, transnetv2, content or adaptive")
    if len(series) < 2:
        return Found(())
    track = Track(series)
    cuts = find_cuts(track)
    certain = [ramp.start for ramp in cuts if ramp.score > THRESHOLD]
    fades, dips = find_fades(track, certain)
    dissolves = find_dissolves(track, certain, [fade for fade in fades if fade.score > THRESHOLD])
    ramps = _compatible([*cuts, *fades, *dissolves], track.n)
    level = THRESHOLD if threshold is None else threshold
    found = tuple(_boundary(track, ramp) for ramp in ramps if ramp.score >= level)
    doubtful = tuple(_boundary(track, ramp) for ramp in ramps if DOUBT[0] <= ramp.score <= DOUBT[1])
    spans = [span for ramp in ramps if ramp.score >= POSSIBLE for span in _to_decode(ramp)] + dips
    return Found(join_short(found, min_shot_s, series.time_base), _passed_over(series, track, spans), doubtful)


def join_short(boundaries: Iterable[Boundary], min_shot_s: float, time_base: Fraction) -> tuple[Boundary, ...]:
    """Boundaries without those that make a shot shorter than `min_shot_s`: the one with the lower score goes, of equals the later."""
    kept: list[Boundary] = []
    for boundary in boundaries:
        keep = True
        while kept and float((boundary.start_pts - kept[-1].end_pts) * time_base) < min_shot_s - 1e-9:
            if boundary.score <= kept[-1].score:
                keep = False
                break
            kept.pop()
        if keep:
            kept.append(boundary)
    return tuple(kept)


def find_cuts(track: Track) -> list[Ramp]:
    """Every candidate for a hard cut with its score: a ramp that starts and ends at the first frame of the new shot."""
    step = track.steps
    higher = np.maximum(np.concatenate([step[1:], [0.0]]), np.concatenate([[0.0], step[:-1]]))
    at_C = np.flatnonzero((step > LEAST_STEP) & (step >= 0.6 * higher))
    # Features in the order of their cost, each bounded before: nearly all candidates go before their histograms are sorted (40 us each).
    features_CF = np.tile(MOST, (len(at_C), 1))
    for fill in (_steps, _likeness, _jumps, _histograms):
        fill(track, at_C, features_CF)
        keep = cut_scores(features_CF) >= NEVER
        at_C, features_CF = at_C[keep], features_CF[keep]
    new_C = features_CF[:, 5] > LEAST_NEW
    return [
        Ramp("cut", int(k), int(k), float(score))
        for k, score in zip(at_C[new_C], cut_scores(features_CF[new_C]), strict=True)
    ]


def _steps(track: Track, at_C: Ints, features_CF: Doubles) -> None:
    """Bounds of the first four: the jump is at most the step itself."""
    _fill_jump(track, at_C, features_CF, track.steps[at_C].astype(np.float64))


def _jumps(track: Track, at_C: Ints, features_CF: Doubles) -> None:
    """Least distance between frames of the two sides: small after a flash, where what was before it comes back."""
    before_CW = np.clip(at_C[:, None] - 1 - np.arange(SIDE), 0, track.n - 1)
    after_CW = np.clip(at_C[:, None] + np.arange(SIDE), 0, track.n - 1)
    pairs = np.repeat(before_CW, SIDE, axis=1).ravel(), np.tile(after_CW, (1, SIDE)).ravel()
    jump_C = track.distance(*pairs).reshape(len(at_C), SIDE * SIDE).min(axis=1, initial=np.inf)
    _fill_jump(track, at_C, features_CF, jump_C.astype(np.float64))


def _fill_jump(track: Track, at_C: Ints, features_CF: Doubles, jump_C: Doubles) -> None:
    padded = np.concatenate([np.zeros(SIDE, np.float32), track.steps, np.zeros(SIDE, np.float32)])
    left_C = padded[SIDE + at_C[:, None] - 1 - np.arange(SIDE - 1)].max(axis=1, initial=0)
    right_C = padded[SIDE + at_C[:, None] + 1 + np.arange(SIDE - 1)].max(axis=1, initial=0)
    # Nothing is known of a side that has but one frame.
    left_C, right_C = np.where(at_C == 1, right_C, left_C), np.where(at_C == track.n - 1, left_C, right_C)
    contrast_C = (track.contrasts[at_C - 1] + track.contrasts[at_C]) / 2
    for column, scale in enumerate(
        (1.0, np.minimum(left_C, right_C) + 1, np.maximum(left_C, right_C) + 1, contrast_C + 4)
    ):
        features_CF[:, column] = np.log((jump_C + 1) / scale)


def _likeness(track: Track, at_C: Ints, features_CF: Doubles) -> None:
    features_CF[:, 4] = track.residual_N[at_C] / np.maximum(track.change_N[at_C], 0.5)
    features_CF[:, 5] = 1 - track.correlation(at_C - 1, at_C)


def _histograms(track: Track, at_C: Ints, features_CF: Doubles) -> None:
    features_CF[:, 6] = track.histogram_distance(at_C - 1, at_C) / (track.steps[at_C] + 1)


def cut_scores(features_CF: Doubles) -> Doubles:
    """Logistic scores `[C]` in [0, 1] of features `[C, F]` in the order of `CUT_WEIGHTS`."""
    return np.asarray(
        1 / (1 + np.exp(-np.clip((features_CF * CUT_WEIGHTS).sum(axis=1) + CUT_BIAS, -30, 30))), np.float64
    )


CUT_WEIGHTS = np.array([0.8, 1.25, 1.4, 0.6, 1.15, 4.1, 1.9])
CUT_BIAS = -10.6
"""Of the logarithm of the jump in levels, of its ratio to the livelier step beside it on the calmer side and on the livelier side, and to
contrast; of the share of the change that motion does not explain; 1 - correlation of the two frames; the histograms' share of the change.

Logistic regression on the 3,207 candidates of 20 edits of `benchmarks/edits.py` (seeds 0 to 19; cuts and the rest weigh the same),
with a penalty of 1e-3 on the squared weights of standardised features; other seeds are what is reported."""
MOST = np.array([5.6, 5.6, 5.6, 4.2, 1.0, 1.5, 1.0])
"""The most that each can be (a correlation below -0.5 does not occur between neighbours)."""
NEVER = 0.002
"""Candidates below this score are forgotten."""


def _compatible(ramps: list[Ramp], n: int) -> list[Ramp]:
    """Of ramps that share a frame, the first pure one of each counted, the one with the highest score; of equals the gradual one."""
    taken = np.zeros(n + 1, np.bool_)
    kept: list[Ramp] = []
    for ramp in sorted(ramps, key=lambda item: (-item.score, item.kind == "cut", item.start)):
        if not taken[ramp.start : ramp.end + 1].any():
            taken[ramp.start : ramp.end + 1] = True
            kept.append(ramp)
    return sorted(kept, key=lambda item: item.start)


def _to_decode(ramp: Ramp) -> list[tuple[int, int]]:
    """Where frames are needed to place a candidate: only at the two ends of a gradual one that is certain."""
    if ramp.kind != "cut" and ramp.score > DOUBT[1]:
        return [(ramp.start - 1, ramp.start), (ramp.end - 1, ramp.end)]
    return [(ramp.start - 1, ramp.end)]


def _boundary(track: Track, ramp: Ramp) -> Boundary:
    kind: Kind = "cut" if ramp.kind == "cut" else "fade" if ramp.kind == "fade" else "dissolve"
    if ramp.end < track.n:
        end = int(track.pts_N[ramp.end])
    else:
        # As long as the frame before it: the series does not know how long the last one is shown.
        frames = int(track.position_N[-1] - track.position_N[-2])
        end = int(track.pts_N[-1]) + max(1, round(int(track.pts_N[-1] - track.pts_N[-2]) / frames))
    return Boundary(kind, int(track.pts_N[ramp.start]), end, round(ramp.score, 4))


def _passed_over(series: Series, track: Track, spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans of indices, with a margin, in which frames were passed over, joined where they touch, as PTS."""
    position = track.position_N
    out: list[list[int]] = []
    for lo, hi in sorted(spans):
        a = max(0, int(np.searchsorted(position, position[max(lo, 0)] - MARGIN, "right")) - 1)
        b = min(track.n - 1, int(np.searchsorted(position, position[min(hi, track.n - 1)] + MARGIN)))
        if out and a <= out[-1][1]:
            out[-1][1] = max(b, out[-1][1])
        elif b > a:
            out.append([a, b])
    return tuple(
        (int(series.pts_N[a]), int(series.pts_N[b])) for a, b in out if series.passed_over_N[a + 1 : b + 1].any()
    )


class ContentScore:
    """PySceneDetect's content score of each picture against the one before: its own code, on pictures of 128 x 72 in area.

    The mean over hue, saturation and value of their mean absolute differences, in levels of 8 bits; 0 for the first picture.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last picture."""
        self._detector = ContentDetector()

    def push(self, bgr_HW3: NDArray[np.uint8]) -> float:
        """The score of the next picture, uint8 `[H, W, 3]` in blue, green, red."""
        return float(self._detector._calculate_frame_score(_NO_TIME, bgr_HW3))


_NO_TIME = FrameTimecode(0, 25.0)
_NO_PICTURE: NDArray[np.uint8] = np.zeros((1, 1, 3), np.uint8)


class _RecordedContent(ContentDetector):  # type: ignore[misc]
    """PySceneDetect's detector with scores that were computed before."""

    recorded = 0.0

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> float:
        return self.recorded


class _RecordedAdaptive(AdaptiveDetector):  # type: ignore[misc]
    recorded = 0.0

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> float:
        return self.recorded


def _recorded(series: Series, name: str, threshold: float | None, min_shot_s: float) -> tuple[Boundary, ...]:
    """PySceneDetect's decisions over recorded content scores. Raises `ValueError` where there are none."""
    if len(series) and np.isnan(series.content_N).any():
        raise ValueError(f"detector {name}: the content score was not recorded for every frame")
    if name == "adaptive":
        detector: SceneDetector = _RecordedAdaptive(
            **({} if threshold is None else {"adaptive_threshold": threshold}), min_scene_len=float(min_shot_s)
        )
    else:
        # SUPPRESS decides at once; MERGE moves cuts after the fact.
        detector = _RecordedContent(
            **({} if threshold is None else {"threshold": threshold}),
            min_scene_len=float(min_shot_s),
            filter_mode=FlashFilter.Mode.SUPPRESS,
        )
    seconds = float((series.pts_N[-1] - series.pts_N[0]) * series.time_base) if len(series) > 1 else 0.0
    # PySceneDetect needs some rate for frame numbers; all that is compared are times.
    rate = Fraction((len(series) - 1) / seconds if seconds else 25.0).limit_denominator(1001)
    start = int(series.pts_N[0]) if len(series) else 0
    found = []
    for pts, score in zip(series.pts_N.tolist(), series.content_N.tolist(), strict=True):
        detector.recorded = score
        # From zero: a negative PTS is legal in a file and refused as a timecode.
        for cut in detector.process_frame(FrameTimecode(Timecode(pts - start, series.time_base), rate), _NO_PICTURE):
            found.append(Boundary("cut", cut.pts + start, cut.pts + start, 1.0))
    return tuple(found)
