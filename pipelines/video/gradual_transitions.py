"""Gradual transitions in a series of signatures: fades through a plain colour, and dissolves.

A dissolve lies on the straight line between the picture before and the picture after it and moves along it at one speed;
motion leaves that line. A fade goes to a plain colour: its contrast falls in a straight line to nothing, or rises from there.

Shape legend: C candidates, G points of a grid of ramps, K frames of a window, D elements of a signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.frame_features import runs
from pipelines.video.signatures import Doubles, Floats, Ints, Track

FLAT = 2.5
"""Levels of contrast below which a picture is a plain colour: coded black, white and grey measure 0 to 0.6, a small title 4."""

LONGEST = 64
"""Frames of the longest ramp looked for: 2.7 s at 24 fps."""
HARD = 2
"""A ramp of contrast of at most this many frames is a cut to or from a plain colour."""
FLASH_S, SAME = 0.35, 0.8
"""A plain run and its ramps of at most this long between pictures that correlate by this much is a flash; a fade each way takes 0.2 s at least."""
DIP = 0.4
"""Where contrast dips to this share of what is on both sides, there may be a plain frame among those passed over."""

EDGE = 2
"""Pure frames that must be there before and after a dissolve."""

SHORT_FRAMES, LOOSE, AGAINST = 3, 0.3, -2.0
"""One or two mixed frames say little, as a blurred frame in the middle of a whip of the camera is on the line as well, and so do frames
this far off the line, as 1 of 93 dissolves is: either counts this much in log odds. Set by hand, on a whip of the
camera in the Sintel trailer, which therefore is no independent test of them."""

MOST_FITS = 6
"""The ends of the ramp decide what line the frames are on, so it is fitted again until they stay; most do after two fits."""

PLAIN_SHARE = 0.2
"""A transition whose contrast falls to this share of its ends' goes through a plain colour, though no frame of it may be plain."""

SCALES = (8, 16, 32)
"""Frames over which a dissolve is looked for; the ramp is fitted to up to twice as many on either side."""
LEAST_DISTANCE = 6.0
LEAST_SHARE = 0.3
MOST_OFF_LINE = 0.35
"""A window is a candidate when its ends are this many levels and this share of their contrast apart, and the frames at its quarters
are off their line by at most this share of it. Dissolves of moving shots are off by 0.02 to 0.25, pans by 0.4 to 1."""


@dataclass(frozen=True)
class Ramp:
    """A gradual transition by indices into the series: frames `start` to `end` (exclusive) are mixed or plain."""

    kind: str
    start: int
    end: int
    score: float


def find_fades(track: Track, cuts: Sequence[int]) -> tuple[list[Ramp], list[tuple[int, int]]]:
    """Fades, and the spans of frames in which contrast dips without a plain frame seen, so that one may have been passed over.

    `cuts` are first frames of shots that are certain: no ramp is fitted across one.
    """
    contrast, n = track.contrasts, track.n
    if n < 3:
        return [], []
    flat = contrast < FLAT
    plain = runs(flat)
    fades = []
    for number, (start, end) in enumerate(plain):
        low = max([plain[number - 1][1] if number else 0, *(cut for cut in cuts if cut <= start - HARD)])
        high = min([plain[number + 1][0] if number + 1 < len(plain) else n, *(cut for cut in cuts if cut > end + HARD)])
        down = _contrast_ramp(track, start, low, -1)
        up = _contrast_ramp(track, end - 1, high - 1, 1)
        if (max(down[0], up[0]) > HARD or start == 0 or end == n) and not _flash(track, start, end, down[0], up[0]):
            score = max(
                down[1] if down[0] > HARD else 0.0, up[1] if up[0] > HARD else 0.0, float(start == 0 or end == n)
            )
            first = (
                start
                if down[0] <= HARD
                else int(np.searchsorted(track.position_N, track.position_N[start] - down[0], "right"))
            )
            last = (
                end
                if up[0] <= HARD
                else int(np.searchsorted(track.position_N, track.position_N[end - 1] + up[0], "left"))
            )
            fades.append(Ramp("fade", first, min(last, n), score))
    fades += _edge_fades(track, flat, cuts)
    return _joined(fades), _dips(track, plain)


def _flash(track: Track, start: int, end: int, down: int, up: int) -> bool:
    """Whether a short plain run with its ramps is a flash: the same picture before and after it."""
    lo = max(0, int(np.searchsorted(track.position_N, track.position_N[start] - max(down, 1), "right")) - 1)
    hi = min(track.n - 1, int(np.searchsorted(track.position_N, track.position_N[end - 1] + max(up, 1))))
    if track.seconds_N[hi] - track.seconds_N[lo] > FLASH_S or start == 0 or end == track.n:
        return False
    return track.likeness(lo, hi) > SAME


def _contrast_ramp(track: Track, plain: int, stop: int, direction: int) -> tuple[int, float]:
    """(length in frames, score) of the ramp of contrast that ends at a plain frame, looking from it to `stop` in one direction.

    Fits C * min(1, t / length), t the distance from the plain frame in frames, by least squares over C and all lengths.
    """
    index = np.arange(plain + direction, stop + direction, direction)
    if len(index) == 0:
        return 0, 0.0
    t_K = np.abs(track.position_N[index] - track.position_N[plain]).astype(np.float64)
    near = t_K <= LONGEST + 16
    t_K, c_K = t_K[near], track.contrasts[index[near]].astype(np.float64)
    return _fit_rise(t_K, c_K)


def _fit_rise(t_K: Doubles, c_K: Doubles) -> tuple[int, float]:
    if len(t_K) < 2:
        return 0, 0.0
    lengths_G = np.arange(1, max(2, min(LONGEST, int(t_K[-1])) + 1))
    r_GK = np.minimum(1.0, t_K / lengths_G[:, None])
    # Frames far away say little about the ramp: contrast drifts as things move.
    weight_GK = np.where(t_K <= lengths_G[:, None] + 8, 1.0, 0.0)
    level_G = (weight_GK * r_GK * c_K).sum(axis=1) / (weight_GK * r_GK * r_GK).sum(axis=1)
    error_G = (weight_GK * (level_G[:, None] * r_GK - c_K) ** 2).sum(axis=1) / weight_GK.sum(axis=1)
    relative_G = error_G / np.maximum(level_G, FLAT) ** 2
    best = int(np.argmin(relative_G))
    # A cut out of a plain colour to a shot whose contrast then grows.
    if c_K[0] > 0.5 * level_G[best]:
        return 1, 0.0
    # A fit within 5 % of the level is certain, one off by 25 % is none.
    score = float(np.clip((0.25 - np.sqrt(relative_G[best])) / 0.2, 0, 1))
    return int(lengths_G[best]), score


def _edge_fades(track: Track, flat: NDArray[np.bool_], cuts: Sequence[int]) -> list[Ramp]:
    """A file that starts dimmed or ends dimmed without a plain frame: the plain one would be the next outside of it."""
    fades = []
    n, position, contrast = track.n, track.position_N, track.contrasts
    if not flat[0]:
        stop = min([n, *(cut for cut in cuts if cut > HARD)])
        t_K = (position[:stop] - position[0] + 1).astype(np.float64)
        length, score = _fit_rise(t_K[t_K <= LONGEST + 16], contrast[:stop][t_K <= LONGEST + 16].astype(np.float64))
        end = int(np.searchsorted(position, position[0] - 1 + length))
        if length > 2 * HARD and 0 < end < n and contrast[0] < DIP * contrast[end]:
            fades.append(Ramp("fade", 0, end, score))
    if not flat[-1]:
        start = max([0, *(cut for cut in cuts if cut <= n - HARD)])
        t_K = (position[-1] - position[start:][::-1] + 1).astype(np.float64)
        length, score = _fit_rise(
            t_K[t_K <= LONGEST + 16], contrast[start:][::-1][t_K <= LONGEST + 16].astype(np.float64)
        )
        first = int(np.searchsorted(position, position[-1] + 1 - length, "right"))
        if length > 2 * HARD and 0 < first < n and contrast[-1] < DIP * contrast[first - 1]:
            fades.append(Ramp("fade", first, n, score))
    return fades


def _joined(fades: list[Ramp]) -> list[Ramp]:
    """Fades that touch as one: a plain run that the noise of coding breaks in two."""
    out: list[Ramp] = []
    for fade in sorted(fades, key=lambda ramp: ramp.start):
        if out and fade.start < out[-1].end:
            out[-1] = Ramp("fade", out[-1].start, max(out[-1].end, fade.end), max(out[-1].score, fade.score))
        else:
            out.append(fade)
    return out


def _dips(track: Track, plain: list[tuple[int, int]]) -> list[tuple[int, int]]:
    contrast = track.contrasts[:, None]
    reach = 16
    kernel = np.ones((reach + 1, 1), np.uint8)
    before = cv2.dilate(contrast, kernel, anchor=(0, reach)).reshape(-1)
    after = cv2.dilate(contrast, kernel, anchor=(0, 0)).reshape(-1)
    lowest = cv2.erode(contrast, np.ones((5, 1), np.uint8)).reshape(-1)
    dips = np.flatnonzero((contrast[:, 0] < DIP * np.minimum(before, after)) & (contrast[:, 0] <= lowest))
    return [
        (max(0, int(k) - 2), min(track.n - 1, int(k) + 2))
        for k in dips
        if not any(start <= k < end for start, end in plain)
    ]


def find_dissolves(track: Track, cuts: Sequence[int], fades: Sequence[Ramp]) -> list[Ramp]:
    """Every candidate with its score; no ramp is fitted across one of the `cuts`, the first frames of shots that are certain, or a fade."""
    lo_C, hi_C, quality_C = _straight_windows(track)
    bounds = np.asarray([0, *sorted({*cuts, *(edge for fade in fades for edge in (fade.start, fade.end))}), track.n])
    found: list[Ramp] = []
    taken = np.zeros(track.n, np.bool_)
    for fade in fades:
        taken[fade.start : fade.end] = True
    for k in np.argsort(-quality_C, kind="stable"):
        lo, hi = int(lo_C[k]), int(hi_C[k])
        if taken[(lo + hi) // 2]:
            continue
        part = int(np.searchsorted(bounds, (lo + hi) // 2, "right"))
        low, high = int(bounds[part - 1]), int(bounds[part]) - 1
        ramp = _fit_dissolve(track, max(lo, low), min(hi, high), low, high)
        if ramp is None:
            continue
        found.append(ramp)
        taken[ramp.start : ramp.end + 1] = True
        taken[lo + (hi - lo) // 4 : hi - (hi - lo) // 4 + 1] = True
    return sorted(found, key=lambda ramp: ramp.start)


def _straight_windows(track: Track) -> tuple[Ints, Ints, Floats]:
    """First and last frames of windows whose middle is on the line between their ends, and how well, at all scales."""
    lows, highs, qualities = [], [], []
    for scale in SCALES:
        start = np.arange(track.position_N[0], track.position_N[-1] - scale + 1, scale // 4)
        lo, mid, hi = (np.searchsorted(track.position_N, start + offset) for offset in (0, scale // 2, scale))
        distance = track.distance(lo, hi)
        # The ends of a dissolve are different pictures, those of a slow pan are much alike.
        different = distance > LEAST_SHARE * (track.contrasts[lo] + track.contrasts[hi]) / 2
        some = (distance > LEAST_DISTANCE) & different & (lo < mid) & (mid < hi)
        lo, mid, hi, distance = lo[some], mid[some], hi[some], distance[some]
        off, share = _off_line(track, lo, mid, hi)
        fits = (off < MOST_OFF_LINE) & (share > 0.2) & (share < 0.8)
        lo, hi, distance, off = lo[fits], hi[fits], distance[fits], off[fits]
        for quarter in ((3 * lo + hi) // 4, (lo + 3 * hi) // 4):
            also, _ = _off_line(track, lo, quarter, hi)
            off = np.maximum(off, also)
        fits = off < MOST_OFF_LINE
        lows.append(lo[fits])
        highs.append(hi[fits])
        qualities.append((distance * (1 - off / MOST_OFF_LINE))[fits])
    return np.concatenate(lows), np.concatenate(highs), np.concatenate(qualities)


def _off_line(track: Track, lo_C: Ints, mid_C: Ints, hi_C: Ints) -> tuple[Floats, Floats]:
    """How far luma of the middle frame is from the line between the ends, as a share of their distance, and where along it."""
    off, share = np.empty(len(lo_C), np.float32), np.empty(len(lo_C), np.float32)
    for at in range(0, len(lo_C), 512):
        part = slice(at, at + 512)
        first = track.luma_ND[lo_C[part]].astype(np.float32)
        along = track.luma_ND[hi_C[part]].astype(np.float32) - first
        middle = track.luma_ND[mid_C[part]].astype(np.float32) - first
        share[part] = np.einsum("cd,cd->c", middle, along) / np.maximum(np.einsum("cd,cd->c", along, along), 1e-3)
        off[part] = np.abs(middle - share[part, None] * along).mean(axis=1) / np.maximum(
            np.abs(along).mean(axis=1), 1e-3
        )
    return off, share


def _fit_dissolve(track: Track, lo: int, hi: int, low: int, high: int) -> Ramp | None:
    """Fit a ramp between the plateaus around a window, and measure how well it describes the frames."""
    position = track.position_N
    if hi <= lo + 1:
        return None
    reach = int(position[hi] - position[lo]) // 2 + 8
    first = max(low, int(np.searchsorted(position, position[lo] - reach)))
    last = min(high, int(np.searchsorted(position, position[hi] + reach, "right")) - 1)
    rows_KD = track.rows(first, last + 1)
    t_K = (position[first : last + 1] - position[first]).astype(np.float64)
    a, b = lo - first, hi - first
    middle = (a + b) // 2
    for _ in range(MOST_FITS):
        before = a, b
        a, b, _ = _fit_ramp(t_K, _shares(rows_KD, a, b), a, b, middle)
        if (a, b) == before:
            break
    if b - a < 2:
        return None
    features = measure(track, rows_KD, t_K, a, b, first)
    # With nothing of a next shot seen, a brightening or a pan says no more than a transition cut off by the end of the file.
    at_edge = first + a < EDGE or first + b >= track.n - EDGE
    if features[0] > MOST_OFF_LINE or features[3] < 1 - SAME or at_edge:
        return None
    # On the way to a plain colour contrast goes to nothing, on the way to another picture to 0.7 of what it was.
    lowest = float(track.contrasts[first + a + 1 : first + b].min())
    dims = lowest < PLAIN_SHARE * float(track.contrasts[[first + a, first + b]].max())
    evidence = AGAINST * (int(t_K[b] - t_K[a] <= SHORT_FRAMES) + int(features[0] > LOOSE))
    return Ramp("fade" if dims else "dissolve", first + a + 1, first + b, score(features, evidence))


def _shares(rows_KD: Floats, a: int, b: int) -> Doubles:
    """Where each frame is along the line from frame `a` (0) to frame `b` (1)."""
    along = rows_KD[b] - rows_KD[a]
    return np.asarray(
        np.einsum("kd,d->k", rows_KD - rows_KD[a], along) / max(float(np.einsum("d,d->", along, along)), 1e-3),
        np.float64,
    )


def _fit_ramp(t_K: Doubles, share_K: Doubles, a: int, b: int, middle: int) -> tuple[int, int, float]:
    """Frames at which the best ramp around frame `middle` between two plateaus starts and ends, and its squared error per frame.

    Coarse to fine: every third pair of frames first, then all around the best.
    """
    n = len(t_K)
    best = (a, b, np.inf)
    for step in (3, 1):
        if step == 3:
            starts, ends = np.arange(0, n - 1, 3), np.arange(1, n, 3)
        else:
            starts, ends = (
                np.arange(max(0, best[0] - 3), min(n - 1, best[0] + 4)),
                np.arange(max(1, best[1] - 3), min(n, best[1] + 4)),
            )
        start_G, end_G = (grid.ravel() for grid in np.meshgrid(starts, ends, indexing="ij"))
        fits = (start_G < end_G) & (start_G < middle + 2) & (end_G > middle - 2)
        start_G, end_G = start_G[fits], end_G[fits]
        if len(start_G) == 0:
            continue
        r_GK = np.clip((t_K - t_K[start_G, None]) / (t_K[end_G] - t_K[start_G])[:, None], 0, 1)
        centred_GK = r_GK - r_GK.mean(axis=1, keepdims=True)
        centred_K = share_K - share_K.mean()
        along_G = np.einsum("gk,k->g", centred_GK, centred_K)
        error_G = (
            centred_K @ centred_K - along_G**2 / np.maximum(np.einsum("gk,gk->g", centred_GK, centred_GK), 1e-9)
        ) / n
        k = int(np.argmin(error_G))
        if error_G[k] <= best[2]:
            best = (int(start_G[k]), int(end_G[k]), float(error_G[k]))
    return best


def measure(track: Track, rows_KD: Floats, t_K: Doubles, a: int, b: int, first: int) -> Doubles:
    """What tells a dissolve from motion, of a ramp from frame `a` (still pure) to `b` (pure again); see `WEIGHTS` for the order."""
    share_K = _shares(rows_KD, a, b)
    along = rows_KD[b] - rows_KD[a]
    inside = slice(a + 1, b)
    length = float(np.abs(along).mean())
    off = float(np.abs(rows_KD[inside] - rows_KD[a] - share_K[inside, None].astype(np.float32) * along).mean()) / max(
        length, 1e-3
    )
    ramp = (t_K - t_K[a]) / (t_K[b] - t_K[a])
    uneven = float(np.sqrt(np.mean((share_K[inside] - ramp[inside]) ** 2)))
    biggest = float(np.diff(share_K[a : b + 1]).max())
    ends = np.array([first + a]), np.array([first + b])
    novelty = 1 - track.likeness(first + a, first + b)
    contrast = float(track.contrasts[first + a] + track.contrasts[first + b]) / 2
    distance = float(track.distance(*ends)[0])
    return np.array([off, uneven, biggest, novelty, min(np.log((distance + 1) / (contrast + 4)), DIFFERENT)])


DIFFERENT = 0.5
WEIGHTS = np.array([-10.4, -3.8, -4.2, 5.1, 2.2])
BIAS = 2.4
"""Of the distance off the line as a share of the line's length; how uneven the speed along it is (root mean square); the biggest step
along it; 1 - likeness of its ends; the logarithm of their distance as a share of their contrast, up to `DIFFERENT`, beyond which pictures
are different and a plain one is no more so.

Logistic regression on the candidates of 20 edits of `benchmarks/edits.py` (seeds 0 to 19; 93 dissolves and 297 others, weighing the
same), with a penalty of 1e-2 on the squared weights of standardised features; rounded. Other seeds are what is reported."""


def score(features: Doubles, evidence: float = 0.0) -> float:
    """Logistic score in [0, 1] of a candidate; `evidence` is added before."""
    return float(1 / (1 + np.exp(-np.clip(float((features * WEIGHTS).sum()) + BIAS + evidence, -30, 30))))
