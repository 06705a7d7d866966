"""Decide where one shot ends and the next begins, from the features of a video's frames.

`signature` is our detector: hard cuts here, fades and dissolves in `gradual_transitions.py`. `content` and `adaptive`
are PySceneDetect's: its decision code, fed with recorded scores.

Shape legend: N frames, C candidates for a cut, F features of a candidate, W frames on either side of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import FlashFilter, SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from cluster.arrays import Float64Array, Int64Array, UInt8Array
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.gradual_transitions import Candidate, find_dissolves, find_fades
from pipelines.video.signatures import Signatures

DetectorName = Literal["signature", "content", "adaptive"]
TransitionKind = Literal["cut", "dissolve", "fade", "gap"]

PYSCENEDETECT_DETECTORS = frozenset({"content", "adaptive"})
"""Detectors that need the recorded content score of every frame."""

DEFAULT_THRESHOLD = 0.5
"""Smallest score of a boundary; scores are probabilities fitted to edits with known transitions."""
MIN_POSSIBLE_SCORE = 0.02
"""Smallest score of a candidate whose skipped frames are decoded."""
MAX_DOUBTFUL_SCORE = 0.98
"""Largest score of a gradual candidate of which every skipped frame is decoded, not only those at its two ends."""

SIDE_FRAMES = 4
"""Frames on either side that are compared across a candidate. Flashes last 1 to 3 frames, the shortest shots wanted 7
(0.3 s at 24 fps)."""
MIN_CUT_DIFFERENCE = 4.0
"""Frame difference, in 8-bit values, up to which there is no cut: two dim shots by a fire are 9 apart, noise and coding
0.5 to 2."""
MIN_CUT_NOVELTY = 0.05
"""1 - correlation of two frames up to which the light has changed, not the image: a lamp measures 0.00 to 0.02, cuts
0.3 to 1.3."""
DECODE_MARGIN_FRAMES = 6
"""Frames around a candidate that are decoded too, so that both of its sides are judged frame by frame."""


@dataclass(frozen=True)
class Boundary:
    """A transition between two shots, or into or out of a plain colour at the ends of a file.

    For a cut, `start_pts` and `end_pts` are both the first frame of the new shot. For a dissolve or fade, `start_pts`
    is the first mixed or plain frame and `end_pts` the first pure frame of the next shot (the end of the last frame if
    the file ends first). A gap is a time without frames (`gaps.py`). `score` is a probability in [0, 1], and 1 for
    gaps and PySceneDetect's detectors.
    """

    kind: TransitionKind
    start_pts: int
    end_pts: int
    score: float


@dataclass(frozen=True)
class Detection:
    """Boundaries found, in time order and without overlap.

    `spans_to_decode` are spans of PTS, from the frame before to the frame after, whose skipped frames must be decoded
    to place or decide a boundary.
    """

    boundaries: tuple[Boundary, ...]
    spans_to_decode: tuple[tuple[int, int], ...] = ()


def find_boundaries(features: FrameFeatures, detector: str, threshold: float | None, min_shot_s: float) -> Detection:
    """Find the boundaries between the shots of N frames.

    `threshold` None is 0.5 for `signature` (a probability), and PySceneDetect's defaults for its detectors: 27 for
    `content` (mean HSV distance) and 3.0 for `adaptive` (times the change around). Shots between boundaries last at
    least `min_shot_s` seconds: of two boundaries that are closer, the one with the lower score is dropped. Raises
    `ValueError` for an unknown detector.
    """
    if detector in PYSCENEDETECT_DETECTORS:
        return Detection(_pyscenedetect_boundaries(features, detector, threshold, min_shot_s))
    if detector != "signature":
        raise ValueError(f"detector {detector!r}: it must be signature, content or adaptive")
    if len(features) < 2:
        return Detection(())
    signatures = Signatures(features)
    cuts = find_cuts(signatures)
    certain = [cut.start for cut in cuts if cut.score > DEFAULT_THRESHOLD]
    fades, dips = find_fades(signatures, certain)
    dissolves = find_dissolves(signatures, certain, [fade for fade in fades if fade.score > DEFAULT_THRESHOLD])
    candidates = _without_overlaps([*cuts, *fades, *dissolves], signatures.n)
    min_score = DEFAULT_THRESHOLD if threshold is None else threshold
    found = tuple(_boundary(signatures, one) for one in candidates if one.score >= min_score)
    spans = [span for one in candidates if one.score >= MIN_POSSIBLE_SCORE for span in _unsure_spans(one)] + dips
    return Detection(
        drop_short_shots(found, min_shot_s, features.time_base), _spans_to_decode(features, signatures, spans)
    )


def stitch_cuts(features: FrameFeatures, boundaries: Sequence[Boundary], min_distance: float) -> tuple[Boundary, ...]:
    """Return the boundaries without cuts whose two sides show almost the same image.

    The mean distance of their signatures is less than `min_distance` 8-bit values.
    """
    kept = []
    for boundary in boundaries:
        after = int(np.searchsorted(features.pts_N, boundary.start_pts))
        if boundary.kind != "cut" or after == 0 or features.distance(after - 1, after) >= min_distance:
            kept.append(boundary)
    return tuple(kept)


def drop_short_shots(boundaries: Iterable[Boundary], min_shot_s: float, time_base: Fraction) -> tuple[Boundary, ...]:
    """Return the boundaries without those that make a shot shorter than `min_shot_s`.

    Of two boundaries that are too close, the one with the lower score is dropped; of equals, the later one.
    """
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


def find_cuts(signatures: Signatures) -> list[Candidate]:
    """Return every candidate for a hard cut with its score.

    Its `start` and `end` are both the first frame of the new shot.
    """
    difference_N = signatures.frame_differences
    higher_N = np.maximum(np.concatenate([difference_N[1:], [0.0]]), np.concatenate([[0.0], difference_N[:-1]]))
    at_C = np.flatnonzero((difference_N > MIN_CUT_DIFFERENCE) & (difference_N >= 0.6 * higher_N))
    # Features in the order of their cost, each bounded before it is known: nearly all candidates are dropped before
    # their histograms are sorted (40 us each).
    features_CF = np.tile(MAX_CUT_FEATURES, (len(at_C), 1))
    for fill in (_fill_difference_bounds, _fill_likeness, _fill_jumps, _fill_histograms):
        fill(signatures, at_C, features_CF)
        keep = cut_scores(features_CF) >= MIN_KEPT_SCORE
        at_C, features_CF = at_C[keep], features_CF[keep]
    new_C = features_CF[:, 5] > MIN_CUT_NOVELTY
    return [
        Candidate("cut", int(k), int(k), float(score))
        for k, score in zip(at_C[new_C], cut_scores(features_CF[new_C]), strict=True)
    ]


def _fill_difference_bounds(signatures: Signatures, at_C: Int64Array, features_CF: Float64Array) -> None:
    """Fill the first four features with bounds: the jump is at most the frame difference."""
    _fill_jump_features(signatures, at_C, features_CF, signatures.frame_differences[at_C].astype(np.float64))


def _fill_jumps(signatures: Signatures, at_C: Int64Array, features_CF: Float64Array) -> None:
    """Fill the first four features from the jump, the smallest distance between any frames of the two sides.

    It is small after a flash, where the image from before the flash returns.
    """
    before_CW = np.clip(at_C[:, None] - 1 - np.arange(SIDE_FRAMES), 0, signatures.n - 1)
    after_CW = np.clip(at_C[:, None] + np.arange(SIDE_FRAMES), 0, signatures.n - 1)
    pairs = np.repeat(before_CW, SIDE_FRAMES, axis=1).ravel(), np.tile(after_CW, (1, SIDE_FRAMES)).ravel()
    jump_C = signatures.distance(*pairs).reshape(len(at_C), SIDE_FRAMES * SIDE_FRAMES).min(axis=1, initial=np.inf)
    _fill_jump_features(signatures, at_C, features_CF, jump_C.astype(np.float64))


def _fill_jump_features(
    signatures: Signatures, at_C: Int64Array, features_CF: Float64Array, jump_C: Float64Array
) -> None:
    ends = np.zeros(SIDE_FRAMES, np.float32)
    padded = np.concatenate([ends, signatures.frame_differences, ends])
    left_C = padded[SIDE_FRAMES + at_C[:, None] - 1 - np.arange(SIDE_FRAMES - 1)].max(axis=1, initial=0)
    right_C = padded[SIDE_FRAMES + at_C[:, None] + 1 + np.arange(SIDE_FRAMES - 1)].max(axis=1, initial=0)
    # A side with a single frame has no frame differences.
    left_C, right_C = np.where(at_C == 1, right_C, left_C), np.where(at_C == signatures.n - 1, left_C, right_C)
    contrast_C = (signatures.contrasts[at_C - 1] + signatures.contrasts[at_C]) / 2
    calmer_C, livelier_C = np.minimum(left_C, right_C), np.maximum(left_C, right_C)
    for column, scale in enumerate((1.0, calmer_C + 1, livelier_C + 1, contrast_C + 4)):
        features_CF[:, column] = np.log((jump_C + 1) / scale)


def _fill_likeness(signatures: Signatures, at_C: Int64Array, features_CF: Float64Array) -> None:
    features_CF[:, 4] = signatures.residual_N[at_C] / np.maximum(signatures.change_N[at_C], 0.5)
    features_CF[:, 5] = 1 - signatures.correlation(at_C - 1, at_C)


def _fill_histograms(signatures: Signatures, at_C: Int64Array, features_CF: Float64Array) -> None:
    features_CF[:, 6] = signatures.histogram_distance(at_C - 1, at_C) / (signatures.frame_differences[at_C] + 1)


def cut_scores(features_CF: Float64Array) -> Float64Array:
    """Return logistic scores `[C]` in [0, 1] of features `[C, F]` in the order of `CUT_WEIGHTS`."""
    log_odds_C = (features_CF * CUT_WEIGHTS).sum(axis=1) + CUT_BIAS
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds_C, -30, 30))), np.float64)


CUT_WEIGHTS = np.array([0.8, 1.25, 1.4, 0.6, 1.15, 4.1, 1.9])
CUT_BIAS = -10.6
"""Weights of: the logarithms of the jump in 8-bit values and of its ratios to the largest frame difference on the
calmer side, to that on the livelier side, and to contrast; the share of the change that motion does not explain; 1 -
correlation of the two frames; the histograms' share of the frame difference.

Logistic regression on the 3,207 candidates of 20 edits of `benchmarks/edits.py` (seeds 0 to 19; cuts and the rest have
the same total weight), with a penalty of 1e-3 on the squared weights of standardised features. Results are reported for
other seeds."""
MAX_CUT_FEATURES = np.array([5.6, 5.6, 5.6, 4.2, 1.0, 1.5, 1.0])
"""Largest value of each feature (a correlation below -0.5 does not occur between neighbours)."""
MIN_KEPT_SCORE = 0.002
"""Smallest score of a candidate that is kept."""


def _without_overlaps(candidates: list[Candidate], n: int) -> list[Candidate]:
    """Return, of candidates that share a frame, the one with the highest score; of equals, the gradual one.

    The first pure frame after a candidate counts as one of its frames.
    """
    taken_N = np.zeros(n + 1, np.bool_)
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda item: (-item.score, item.kind == "cut", item.start)):
        if not taken_N[candidate.start : candidate.end + 1].any():
            taken_N[candidate.start : candidate.end + 1] = True
            kept.append(candidate)
    return sorted(kept, key=lambda item: item.start)


def _unsure_spans(candidate: Candidate) -> list[tuple[int, int]]:
    """Return spans of frame indices in which a candidate must be placed.

    They are only its two ends if it is gradual and certain.
    """
    if candidate.kind != "cut" and candidate.score > MAX_DOUBTFUL_SCORE:
        return [(candidate.start - 1, candidate.start), (candidate.end - 1, candidate.end)]
    return [(candidate.start - 1, candidate.end)]


def _boundary(signatures: Signatures, candidate: Candidate) -> Boundary:
    kind: TransitionKind = "cut" if candidate.kind == "cut" else "fade" if candidate.kind == "fade" else "dissolve"
    pts_N = signatures.pts_N
    if candidate.end < signatures.n:
        end_pts = int(pts_N[candidate.end])
    else:
        # As long as the frame before it: the duration of the last frame is not among the features.
        frames = int(signatures.source_index_N[-1] - signatures.source_index_N[-2])
        end_pts = int(pts_N[-1]) + max(1, round(int(pts_N[-1] - pts_N[-2]) / frames))
    return Boundary(kind, int(pts_N[candidate.start]), end_pts, round(candidate.score, 4))


def _spans_to_decode(
    features: FrameFeatures, signatures: Signatures, spans: list[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return, as PTS, spans of frame indices with skipped frames.

    The spans are widened by a margin and joined where they touch.
    """
    source_index_N = signatures.source_index_N
    joined: list[list[int]] = []
    for lo, hi in sorted(spans):
        first_source = source_index_N[max(lo, 0)] - DECODE_MARGIN_FRAMES
        last_source = source_index_N[min(hi, signatures.n - 1)] + DECODE_MARGIN_FRAMES
        a = max(0, int(np.searchsorted(source_index_N, first_source, "right")) - 1)
        b = min(signatures.n - 1, int(np.searchsorted(source_index_N, last_source)))
        if joined and a <= joined[-1][1]:
            joined[-1][1] = max(b, joined[-1][1])
        elif b > a:
            joined.append([a, b])
    return tuple(
        (int(features.pts_N[a]), int(features.pts_N[b])) for a, b in joined if features.skipped_N[a + 1 : b + 1].any()
    )


class ContentScore:
    """PySceneDetect's content score of each image against the one before, by its code, on images of 128 x 72 in area.

    It is the mean over hue, saturation and value of their mean absolute differences, in 8-bit values; 0 for the first
    image.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last image."""
        self._detector = ContentDetector()

    def push(self, bgr_HW3: UInt8Array) -> float:
        """Return the score of the next image, uint8 `[H, W, 3]` in blue, green, red."""
        return float(self._detector._calculate_frame_score(_NO_TIME, bgr_HW3))


_NO_TIME = FrameTimecode(0, 25.0)
_NO_IMAGE: UInt8Array = np.zeros((1, 1, 3), np.uint8)


class _RecordedContent(ContentDetector):  # type: ignore[misc]
    """PySceneDetect's content detector with scores that were computed before."""

    recorded = 0.0

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: UInt8Array) -> float:
        return self.recorded


class _RecordedAdaptive(AdaptiveDetector):  # type: ignore[misc]
    """PySceneDetect's adaptive detector with scores that were computed before."""

    recorded = 0.0

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: UInt8Array) -> float:
        return self.recorded


def _pyscenedetect_boundaries(
    features: FrameFeatures, name: str, threshold: float | None, min_shot_s: float
) -> tuple[Boundary, ...]:
    """Return PySceneDetect's decisions over recorded content scores. Raises `ValueError` if they were not recorded."""
    if len(features) and np.isnan(features.content_score_N).any():
        raise ValueError(f"detector {name}: the content score was not recorded for every frame")
    if name == "adaptive":
        detector: SceneDetector = _RecordedAdaptive(
            **({} if threshold is None else {"adaptive_threshold": threshold}), min_scene_len=float(min_shot_s)
        )
    else:
        # SUPPRESS decides as frames come; MERGE moves cuts afterwards.
        detector = _RecordedContent(
            **({} if threshold is None else {"threshold": threshold}),
            min_scene_len=float(min_shot_s),
            filter_mode=FlashFilter.Mode.SUPPRESS,
        )
    pts_N, time_base = features.pts_N, features.time_base
    seconds = float((pts_N[-1] - pts_N[0]) * time_base) if len(features) > 1 else 0.0
    # PySceneDetect needs a rate for frame numbers, but compares only times.
    rate = Fraction((len(features) - 1) / seconds if seconds else 25.0).limit_denominator(1001)
    start_pts = int(pts_N[0]) if len(features) else 0
    found = []
    for pts, score in zip(pts_N.tolist(), features.content_score_N.tolist(), strict=True):
        detector.recorded = score
        # From zero: a negative PTS is legal in a file and refused as a timecode.
        for cut in detector.process_frame(FrameTimecode(Timecode(pts - start_pts, time_base), rate), _NO_IMAGE):
            found.append(Boundary("cut", cut.pts + start_pts, cut.pts + start_pts, 1.0))
    return tuple(found)
