"""Find gradual transitions in the signatures of a video: fades through a plain colour, and dissolves.

The frames of a dissolve lie on the straight line between the image before and the image after it, and move along it at
one speed; motion leaves that line. A fade goes to a plain colour: its contrast falls in a straight line to nothing, or
rises from there.

Shape legend: C candidates, G points of a grid of ramps, K frames of a window, D elements of a signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cluster.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from pipelines.video.frame_features import true_runs
from pipelines.video.signatures import Signatures

MAX_PLAIN_CONTRAST = 2.5
"""Contrast, in 8-bit values, below which a frame is a plain colour: coded black, white and grey measure 0 to 0.6, a
small title 4."""

MAX_RAMP_FRAMES = 64
"""Frames of the longest ramp that is fitted: 2.7 s at 24 fps."""
RAMP_MARGIN_FRAMES = 16
"""Frames beyond the longest ramp that its fit also sees."""
MAX_CUT_RAMP_FRAMES = 2
"""A ramp of contrast of at most this many frames is a cut to or from a plain colour."""
MAX_FLASH_S, MIN_SAME_CORRELATION = 0.35, 0.8
"""A plain run with its ramps is a flash if it lasts at most this many seconds and the frames on its two sides correlate
by more than this. A fade takes at least 0.2 s each way."""
MAX_DIP_SHARE = 0.4
"""Where contrast dips below this share of both sides, there may be a plain frame among the skipped ones."""

MIN_PURE_FRAMES = 2
"""Pure frames that a dissolve must have before and after it."""

MAX_SHORT_FRAMES, MIN_LOOSE_OFF_LINE, DOUBT_LOG_ODDS = 3, 0.3, -2.0
"""One or two mixed frames say little: a blurred frame in the middle of a whip pan is on the line as well. Nor do frames
that are more than `MIN_LOOSE_OFF_LINE` off the line, as 1 of 93 dissolves is. Either adds `DOUBT_LOG_ODDS` to the log
odds. They were set by hand, on a whip pan in the Sintel trailer, which is therefore no independent test of them."""

MAX_FITS = 6
"""The ends of the ramp decide which line the frames are on, so it is fitted again until they stay; most do after two
fits."""

MAX_PLAIN_SHARE = 0.2
"""A transition whose contrast falls below this share of its ends' contrast goes through a plain colour, though no frame
may be plain."""

WINDOW_FRAMES = (8, 16, 32)
"""Frames over which a dissolve is searched for; the ramp is fitted to up to twice as many on either side."""
MIN_DISTANCE = 6.0
MIN_DISTANCE_SHARE = 0.3
MAX_OFF_LINE = 0.35
"""A window is a candidate if its ends are more than `MIN_DISTANCE` 8-bit values and `MIN_DISTANCE_SHARE` of their
contrast apart, and the frames at its quarters are off their line by less than `MAX_OFF_LINE` of its length. Dissolves
of moving shots are off by 0.02 to 0.25, pans by 0.4 to 1."""


@dataclass(frozen=True)
class Candidate:
    """A candidate transition with its score: frames `start` to `end` (exclusive) are mixed or plain."""

    kind: str
    start: int
    end: int
    score: float


def find_fades(signatures: Signatures, cuts: Sequence[int]) -> tuple[list[Candidate], list[tuple[int, int]]]:
    """Return fades, and spans of frames in which contrast dips: a plain frame there may be among the skipped ones.

    `cuts` are the first frames of shots that are certain; no ramp is fitted across one.
    """
    contrast_N, n = signatures.contrasts, signatures.n
    source_index_N = signatures.source_index_N
    if n < 3:
        return [], []
    plain_N = contrast_N < MAX_PLAIN_CONTRAST
    plain_runs = true_runs(plain_N)
    fades = []
    for number, (start, end) in enumerate(plain_runs):
        previous_end = plain_runs[number - 1][1] if number else 0
        next_start = plain_runs[number + 1][0] if number + 1 < len(plain_runs) else n
        low = max([previous_end, *(cut for cut in cuts if cut <= start - MAX_CUT_RAMP_FRAMES)])
        high = min([next_start, *(cut for cut in cuts if cut > end + MAX_CUT_RAMP_FRAMES)])
        down_frames, down_score = _contrast_ramp(signatures, start, low, -1)
        up_frames, up_score = _contrast_ramp(signatures, end - 1, high - 1, 1)
        fades_down, fades_up = down_frames > MAX_CUT_RAMP_FRAMES, up_frames > MAX_CUT_RAMP_FRAMES
        at_edge = start == 0 or end == n
        if not (fades_down or fades_up or at_edge) or _is_flash(signatures, start, end, down_frames, up_frames):
            continue
        score = max(down_score if fades_down else 0.0, up_score if fades_up else 0.0, float(at_edge))
        first, last = start, end
        if fades_down:
            first = int(np.searchsorted(source_index_N, source_index_N[start] - down_frames, "right"))
        if fades_up:
            last = int(np.searchsorted(source_index_N, source_index_N[end - 1] + up_frames, "left"))
        fades.append(Candidate("fade", first, min(last, n), score))
    fades += _edge_fades(signatures, plain_N, cuts)
    return _joined(fades), _dips(signatures, plain_runs)


def _is_flash(signatures: Signatures, start: int, end: int, down_frames: int, up_frames: int) -> bool:
    """Return whether a short plain run with its ramps is a flash: the image is the same before and after it."""
    source_index_N = signatures.source_index_N
    before = int(np.searchsorted(source_index_N, source_index_N[start] - max(down_frames, 1), "right")) - 1
    after = int(np.searchsorted(source_index_N, source_index_N[end - 1] + max(up_frames, 1)))
    before, after = max(0, before), min(signatures.n - 1, after)
    if signatures.seconds_N[after] - signatures.seconds_N[before] > MAX_FLASH_S or start == 0 or end == signatures.n:
        return False
    return signatures.shifted_correlation(before, after) > MIN_SAME_CORRELATION


def _contrast_ramp(signatures: Signatures, plain: int, stop: int, direction: int) -> tuple[int, float]:
    """Return (length in frames, score) of the ramp of contrast that ends at a plain frame, seen from there to `stop`.

    It fits C * min(1, t / length), t the distance from the plain frame in frames, by least squares over C and all
    lengths.
    """
    index = np.arange(plain + direction, stop + direction, direction)
    if len(index) == 0:
        return 0, 0.0
    t_K = np.abs(signatures.source_index_N[index] - signatures.source_index_N[plain]).astype(np.float64)
    near_K = t_K <= MAX_RAMP_FRAMES + RAMP_MARGIN_FRAMES
    return _fit_rise(t_K[near_K], signatures.contrasts[index[near_K]].astype(np.float64))


def _fit_rise(t_K: Float64Array, contrast_K: Float64Array) -> tuple[int, float]:
    """Return (length in frames, score) of the best rise from 0 at t = 0."""
    if len(t_K) < 2:
        return 0, 0.0
    lengths_G = np.arange(1, max(2, min(MAX_RAMP_FRAMES, int(t_K[-1])) + 1))
    ramp_GK = np.minimum(1.0, t_K / lengths_G[:, None])
    # Distant frames say little about the ramp: contrast drifts as things move.
    weight_GK = np.where(t_K <= lengths_G[:, None] + 8, 1.0, 0.0)
    level_G = (weight_GK * ramp_GK * contrast_K).sum(axis=1) / (weight_GK * ramp_GK * ramp_GK).sum(axis=1)
    error_G = (weight_GK * (level_G[:, None] * ramp_GK - contrast_K) ** 2).sum(axis=1) / weight_GK.sum(axis=1)
    relative_G = error_G / np.maximum(level_G, MAX_PLAIN_CONTRAST) ** 2
    best = int(np.argmin(relative_G))
    # A cut out of a plain colour to a shot whose contrast then grows.
    if contrast_K[0] > 0.5 * level_G[best]:
        return 1, 0.0
    # A fit within 5% of the level is certain, one that is 25% off is no ramp.
    score = float(np.clip((0.25 - np.sqrt(relative_G[best])) / 0.2, 0, 1))
    return int(lengths_G[best]), score


def _edge_fades(signatures: Signatures, plain_N: BoolArray, cuts: Sequence[int]) -> list[Candidate]:
    """Return fades of a file that starts or ends dimmed.

    No frame is plain: the plain one would be the next outside of the file.
    """
    fades = []
    n, source_index_N, contrast_N = signatures.n, signatures.source_index_N, signatures.contrasts
    max_frames = MAX_RAMP_FRAMES + RAMP_MARGIN_FRAMES
    if not plain_N[0]:
        stop = min([n, *(cut for cut in cuts if cut > MAX_CUT_RAMP_FRAMES)])
        t_K = (source_index_N[:stop] - source_index_N[0] + 1).astype(np.float64)
        near_K = t_K <= max_frames
        length, score = _fit_rise(t_K[near_K], contrast_N[:stop][near_K].astype(np.float64))
        end = int(np.searchsorted(source_index_N, source_index_N[0] - 1 + length))
        if length > 2 * MAX_CUT_RAMP_FRAMES and 0 < end < n and contrast_N[0] < MAX_DIP_SHARE * contrast_N[end]:
            fades.append(Candidate("fade", 0, end, score))
    if not plain_N[-1]:
        start = max([0, *(cut for cut in cuts if cut <= n - MAX_CUT_RAMP_FRAMES)])
        t_K = (source_index_N[-1] - source_index_N[start:][::-1] + 1).astype(np.float64)
        near_K = t_K <= max_frames
        length, score = _fit_rise(t_K[near_K], contrast_N[start:][::-1][near_K].astype(np.float64))
        first = int(np.searchsorted(source_index_N, source_index_N[-1] + 1 - length, "right"))
        long_enough = length > 2 * MAX_CUT_RAMP_FRAMES and 0 < first < n
        if long_enough and contrast_N[-1] < MAX_DIP_SHARE * contrast_N[first - 1]:
            fades.append(Candidate("fade", first, n, score))
    return fades


def _joined(fades: list[Candidate]) -> list[Candidate]:
    """Return fades with those that overlap as one: coding noise can break a plain run in two."""
    out: list[Candidate] = []
    for fade in sorted(fades, key=lambda candidate: candidate.start):
        if out and fade.start < out[-1].end:
            out[-1] = Candidate("fade", out[-1].start, max(out[-1].end, fade.end), max(out[-1].score, fade.score))
        else:
            out.append(fade)
    return out


def _dips(signatures: Signatures, plain_runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of up to 5 frames around the lowest point of each dip of contrast that has no plain frame."""
    contrast_N1 = signatures.contrasts[:, None]
    reach = 16
    kernel = np.ones((reach + 1, 1), np.uint8)
    before_N = cv2.dilate(contrast_N1, kernel, anchor=(0, reach)).reshape(-1)
    after_N = cv2.dilate(contrast_N1, kernel, anchor=(0, 0)).reshape(-1)
    lowest_N = cv2.erode(contrast_N1, np.ones((5, 1), np.uint8)).reshape(-1)
    low_N = contrast_N1[:, 0] < MAX_DIP_SHARE * np.minimum(before_N, after_N)
    dips = np.flatnonzero(low_N & (contrast_N1[:, 0] <= lowest_N))
    return [
        (max(0, int(k) - 2), min(signatures.n - 1, int(k) + 2))
        for k in dips
        if not any(start <= k < end for start, end in plain_runs)
    ]


def find_dissolves(signatures: Signatures, cuts: Sequence[int], fades: Sequence[Candidate]) -> list[Candidate]:
    """Return every candidate for a dissolve with its score.

    No ramp is fitted across a fade or across one of the `cuts`, the first frames of shots that are certain.
    """
    n = signatures.n
    lo_C, hi_C, quality_C = _straight_windows(signatures)
    bounds = np.asarray([0, *sorted({*cuts, *(edge for fade in fades for edge in (fade.start, fade.end))}), n])
    found: list[Candidate] = []
    taken_N = np.zeros(n, np.bool_)
    for fade in fades:
        taken_N[fade.start : fade.end] = True
    for k in np.argsort(-quality_C, kind="stable"):
        lo, hi = int(lo_C[k]), int(hi_C[k])
        if taken_N[(lo + hi) // 2]:
            continue
        part = int(np.searchsorted(bounds, (lo + hi) // 2, "right"))
        low, high = int(bounds[part - 1]), int(bounds[part]) - 1
        candidate = _fit_dissolve(signatures, max(lo, low), min(hi, high), low, high)
        if candidate is None:
            continue
        found.append(candidate)
        taken_N[candidate.start : candidate.end + 1] = True
        taken_N[lo + (hi - lo) // 4 : hi - (hi - lo) // 4 + 1] = True
    return sorted(found, key=lambda candidate: candidate.start)


def _straight_windows(signatures: Signatures) -> tuple[Int64Array, Int64Array, Float32Array]:
    """Return windows whose middle is on the line between their ends: first frames, last frames, quality `[C]`."""
    lows, highs, qualities = [], [], []
    source_index_N, contrast_N = signatures.source_index_N, signatures.contrasts
    for frames in WINDOW_FRAMES:
        start = np.arange(source_index_N[0], source_index_N[-1] - frames + 1, frames // 4)
        lo, mid, hi = (np.searchsorted(source_index_N, start + offset) for offset in (0, frames // 2, frames))
        distance = signatures.distance(lo, hi)
        # The ends of a dissolve are different images, those of a slow pan are much alike.
        different = distance > MIN_DISTANCE_SHARE * (contrast_N[lo] + contrast_N[hi]) / 2
        some = (distance > MIN_DISTANCE) & different & (lo < mid) & (mid < hi)
        lo, mid, hi, distance = lo[some], mid[some], hi[some], distance[some]
        off, share = _off_line(signatures, lo, mid, hi)
        fits = (off < MAX_OFF_LINE) & (share > 0.2) & (share < 0.8)
        lo, hi, distance, off = lo[fits], hi[fits], distance[fits], off[fits]
        for quarter in ((3 * lo + hi) // 4, (lo + 3 * hi) // 4):
            quarter_off, _ = _off_line(signatures, lo, quarter, hi)
            off = np.maximum(off, quarter_off)
        fits = off < MAX_OFF_LINE
        lows.append(lo[fits])
        highs.append(hi[fits])
        qualities.append((distance * (1 - off / MAX_OFF_LINE))[fits])
    return np.concatenate(lows), np.concatenate(highs), np.concatenate(qualities)


def _off_line(
    signatures: Signatures, lo_C: Int64Array, mid_C: Int64Array, hi_C: Int64Array
) -> tuple[Float32Array, Float32Array]:
    """Return how far luma of the middle frame is off the line between the ends, and where along the line it is.

    Both are shares of the line's length.
    """
    luma_ND = signatures.luma_ND
    off_C, share_C = np.empty(len(lo_C), np.float32), np.empty(len(lo_C), np.float32)
    for at in range(0, len(lo_C), 512):
        part = slice(at, at + 512)
        first = luma_ND[lo_C[part]].astype(np.float32)
        along = luma_ND[hi_C[part]].astype(np.float32) - first
        middle = luma_ND[mid_C[part]].astype(np.float32) - first
        share_C[part] = np.einsum("cd,cd->c", middle, along) / np.maximum(np.einsum("cd,cd->c", along, along), 1e-3)
        length = np.maximum(np.abs(along).mean(axis=1), 1e-3)
        off_C[part] = np.abs(middle - share_C[part, None] * along).mean(axis=1) / length
    return off_C, share_C


def _fit_dissolve(signatures: Signatures, lo: int, hi: int, low: int, high: int) -> Candidate | None:
    """Fit a ramp around the window from `lo` to `hi`, inside `low` to `high`, and score how well it fits."""
    source_index_N, contrast_N = signatures.source_index_N, signatures.contrasts
    if hi <= lo + 1:
        return None
    reach = int(source_index_N[hi] - source_index_N[lo]) // 2 + 8
    first = max(low, int(np.searchsorted(source_index_N, source_index_N[lo] - reach)))
    last = min(high, int(np.searchsorted(source_index_N, source_index_N[hi] + reach, "right")) - 1)
    vectors_KD = signatures.vectors(first, last + 1)
    t_K = (source_index_N[first : last + 1] - source_index_N[first]).astype(np.float64)
    a, b = lo - first, hi - first
    middle = (a + b) // 2
    for _ in range(MAX_FITS):
        before = a, b
        a, b, _ = _fit_ramp(t_K, _shares_along(vectors_KD, a, b), a, b, middle)
        if (a, b) == before:
            break
    if b - a < 2:
        return None
    features = _dissolve_features(signatures, vectors_KD, t_K, a, b, first)
    # If nothing of a next shot is seen, a brightening or a pan looks like a transition cut off by the end of the file.
    at_edge = first + a < MIN_PURE_FRAMES or first + b >= signatures.n - MIN_PURE_FRAMES
    if features[0] > MAX_OFF_LINE or features[3] < 1 - MIN_SAME_CORRELATION or at_edge:
        return None
    # On its way to a plain colour contrast goes to nothing; on its way to another image, to 0.7 of its value.
    lowest = float(contrast_N[first + a + 1 : first + b].min())
    dims = lowest < MAX_PLAIN_SHARE * float(contrast_N[[first + a, first + b]].max())
    doubts = int(t_K[b] - t_K[a] <= MAX_SHORT_FRAMES) + int(features[0] > MIN_LOOSE_OFF_LINE)
    score = _dissolve_score(features, DOUBT_LOG_ODDS * doubts)
    return Candidate("fade" if dims else "dissolve", first + a + 1, first + b, score)


def _shares_along(vectors_KD: Float32Array, a: int, b: int) -> Float64Array:
    """Return where each frame is along the line from frame `a` (0) to frame `b` (1), `[K]`."""
    along = vectors_KD[b] - vectors_KD[a]
    return np.asarray(
        np.einsum("kd,d->k", vectors_KD - vectors_KD[a], along) / max(float(np.einsum("d,d->", along, along)), 1e-3),
        np.float64,
    )


def _fit_ramp(t_K: Float64Array, share_K: Float64Array, a: int, b: int, middle: int) -> tuple[int, int, float]:
    """Return the first and last frame of the best ramp around `middle` between two plateaus, and its error.

    The error is the mean square. The search is coarse to fine: every third pair of frames first, then all pairs around
    the best. `a` and `b` are the default.
    """
    n = len(t_K)
    best = (a, b, np.inf)
    for step in (3, 1):
        if step == 3:
            starts, ends = np.arange(0, n - 1, 3), np.arange(1, n, 3)
        else:
            starts = np.arange(max(0, best[0] - 3), min(n - 1, best[0] + 4))
            ends = np.arange(max(1, best[1] - 3), min(n, best[1] + 4))
        start_G, end_G = (grid.ravel() for grid in np.meshgrid(starts, ends, indexing="ij"))
        fits = (start_G < end_G) & (start_G < middle + 2) & (end_G > middle - 2)
        start_G, end_G = start_G[fits], end_G[fits]
        if len(start_G) == 0:
            continue
        ramp_GK = np.clip((t_K - t_K[start_G, None]) / (t_K[end_G] - t_K[start_G])[:, None], 0, 1)
        centred_GK = ramp_GK - ramp_GK.mean(axis=1, keepdims=True)
        centred_K = share_K - share_K.mean()
        along_G = np.einsum("gk,k->g", centred_GK, centred_K)
        squares_G = np.maximum(np.einsum("gk,gk->g", centred_GK, centred_GK), 1e-9)
        error_G = (centred_K @ centred_K - along_G**2 / squares_G) / n
        k = int(np.argmin(error_G))
        if error_G[k] <= best[2]:
            best = (int(start_G[k]), int(end_G[k]), float(error_G[k]))
    return best


def _dissolve_features(
    signatures: Signatures, vectors_KD: Float32Array, t_K: Float64Array, a: int, b: int, first: int
) -> Float64Array:
    """Return the features of a ramp from frame `a` (still pure) to `b` (pure again).

    They are in the order of `DISSOLVE_WEIGHTS`. `first` is the index of frame 0 of the window among all frames.
    """
    share_K = _shares_along(vectors_KD, a, b)
    along = vectors_KD[b] - vectors_KD[a]
    inside = slice(a + 1, b)
    length = max(float(np.abs(along).mean()), 1e-3)
    off_KD = vectors_KD[inside] - vectors_KD[a] - share_K[inside, None].astype(np.float32) * along
    off_line = float(np.abs(off_KD).mean()) / length
    ramp_K = (t_K - t_K[a]) / (t_K[b] - t_K[a])
    unevenness = float(np.sqrt(np.mean((share_K[inside] - ramp_K[inside]) ** 2)))
    largest_step = float(np.diff(share_K[a : b + 1]).max())
    novelty = 1 - signatures.shifted_correlation(first + a, first + b)
    contrast = float(signatures.contrasts[first + a] + signatures.contrasts[first + b]) / 2
    distance = float(signatures.distance(np.array([first + a]), np.array([first + b]))[0])
    log_distance = min(np.log((distance + 1) / (contrast + 4)), MAX_LOG_DISTANCE)
    return np.array([off_line, unevenness, largest_step, novelty, log_distance])


MAX_LOG_DISTANCE = 0.5
DISSOLVE_WEIGHTS = np.array([-10.4, -3.8, -4.2, 5.1, 2.2])
DISSOLVE_BIAS = 2.4
"""Weights of: the distance off the line as a share of the line's length; the unevenness of the speed along it (root
mean square); the largest step along it; 1 - shifted correlation of its ends; the logarithm of their distance as a share
of their contrast. The last is limited to `MAX_LOG_DISTANCE`: beyond it the images are different, and a plain one is no
more different.

Logistic regression on the candidates of 20 edits of `benchmarks/edits.py` (seeds 0 to 19; 93 dissolves and 297 others,
with the same total weight), with a penalty of 1e-2 on the squared weights of standardised features; rounded. Results
are reported for other seeds."""


def _dissolve_score(features: Float64Array, log_odds: float = 0.0) -> float:
    """Return the logistic score in [0, 1] of a candidate, with `log_odds` added to its log odds."""
    total = float((features * DISSOLVE_WEIGHTS).sum()) + DISSOLVE_BIAS + log_odds
    return float(1 / (1 + np.exp(-np.clip(total, -30, 30))))
