"""Windows: the spans of a clip that are encoded, each as long as a bucket, chosen to cover the clip.

Lengths are counted in frame steps: a bucket of F frames spans F - 1 steps of 1 / fps seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from training.data.buckets import Bucket, BucketSettings, SizeChoice, fitting_choices

LOST_SHARE_STEP = Fraction(1, 10)
"""Shares of a clip that sizes lose are compared in these steps; within one, the larger area wins."""


@dataclass(frozen=True)
class ClipSpan:
    """The span [start, end) of a clip in PTS, with its time base in seconds."""

    start_pts: int
    end_pts: int
    time_base: Fraction

    @property
    def pts(self) -> int:
        """Length in units of the time base."""
        return self.end_pts - self.start_pts

    def step_pts(self, fps: float) -> Fraction:
        """Return the units of the time base from one sampled frame to the next."""
        return 1 / (Fraction(fps).limit_denominator(1001) * self.time_base)

    def length_pts(self, frames: int, fps: float) -> int:
        """Return the units of the time base from the first of `frames` sampled frames to the last, rounded half up."""
        return int((frames - 1) * self.step_pts(fps) + Fraction(1, 2))

    def window(self, bucket: Bucket, start_pts: int) -> Window:
        """Return the window that begins at `start_pts`, which the clip must have room for."""
        length_pts = self.length_pts(bucket.frames, bucket.fps)
        return Window(bucket, start_pts, min(start_pts + length_pts + 1, self.end_pts), length_pts)


@dataclass(frozen=True)
class Window:
    """A span of a clip that fills a bucket: its first frame at `start_pts`, its last `length_pts` later.

    `end_pts` is the exclusive end of the source frames that it shows. So windows that follow each other share the frame
    of their boundary.
    """

    bucket: Bucket
    start_pts: int
    end_pts: int
    length_pts: int


@dataclass(frozen=True)
class WindowRules:
    """Settings of which windows of a clip are encoded, at which sizes."""

    windows: Literal["cover", "first"] = "cover"
    sizes: Literal["all", "best"] = "all"
    stills: bool = False


def choose_windows(
    buckets: Sequence[BucketSettings], size: tuple[int, int], span: ClipSpan, is_image: bool, rules: WindowRules
) -> tuple[Window, ...] | str:
    """Return the windows of a clip whose image has this (width, height), or the reason why no bucket takes it.

    `sizes: all` gives windows at every size and frame rate that need not enlarge the clip. `best` gives those of one:
    the one that loses the smallest share of the clip, in steps of `LOST_SHARE_STEP`, then the largest area, then the
    highest frame rate. Images, and with `stills` clips that are too short for every video bucket, go to buckets of 1
    frame. Windows are in the order of `buckets`, then of their starts. Raises `ValueError` if `buckets` is empty.
    """
    choices = fitting_choices(buckets, *size)
    if isinstance(choices, str):
        return choices
    if is_image:
        stills = _still_windows(choices, span, rules)
        return stills or "it is an image, and no bucket it could fill has 1 among its frames"
    covers = [(choice, windows) for choice in choices if (windows := cover(span, choice, rules.windows))]
    if covers and rules.sizes == "best":
        covers = [min(covers, key=lambda cover: _loss(cover[0], cover[1], span))]
    if covers:
        return tuple(window for _, windows in covers for window in windows)
    if rules.stills and (stills := _still_windows(choices, span, rules)):
        return stills
    return _reason(choices, span, rules)


def cover(span: ClipSpan, choice: SizeChoice, windows: Literal["cover", "first"] = "cover") -> tuple[Window, ...]:
    """Return the windows of a clip at one size and rate; none if it is too short for every video bucket.

    `first` is one window of the longest bucket, from the clip's start. `cover` minimises the seconds that are in no
    window plus those that are in two. Of equals it leaves out least, then has the fewest windows, then the longest.
    Windows follow each other, the longest first; if they are longer than the clip together, all overlap equally.
    """
    step = span.step_pts(choice.fps)
    length_of = {frames: span.length_pts(frames, choice.fps) for frames in choice.frames if frames > 1}
    usable = tuple(sorted((frames for frames, length in length_of.items() if length <= span.pts), reverse=True))
    if not usable or not span.pts:
        return ()
    counts = usable[:1] if windows == "first" else choose_lengths(usable, span.pts / step)
    lengths = [length_of[frames] for frames in counts]
    overlap = max(0, sum(lengths) - span.pts)
    found = []
    for i, (frames, offset) in enumerate(zip(counts, itertools.accumulate(lengths, initial=0), strict=False)):
        start = span.start_pts + offset - (overlap * i // (len(counts) - 1) if i else 0)
        found.append(span.window(Bucket(choice.width, choice.height, frames, choice.fps), start))
    return tuple(found)


def choose_lengths(frames: tuple[int, ...], steps: Fraction) -> tuple[int, ...]:
    """Return the numbers of frames, the largest first, whose steps add up to the nearest of `steps`.

    Of two sums equally near it is the larger, and of the ways to a sum the one of fewest numbers, then of the largest.
    """
    counts = tuple(sorted((count - 1 for count in frames), reverse=True))
    limit = int(steps) + counts[0]
    table = _fewest(counts, 1 << limit.bit_length())
    below = next((total for total in range(int(steps), 0, -1) if table[total]), 0)
    above = next(total for total in range(max(1, -int(-steps // 1)), limit + 1) if table[total])
    total = above if not below or above - steps <= steps - below else below
    chosen = []
    while total:
        chosen.append(1 + table[total])
        total -= table[total]
    return tuple(sorted(chosen, reverse=True))


@lru_cache(maxsize=64)
def _fewest(counts: tuple[int, ...], limit: int) -> list[int]:
    """Return for each sum up to `limit` the largest of the fewest `counts` that add up to it; 0 if none do."""
    unreachable = limit + 1
    fewest = [0] + [unreachable] * limit
    last = [0] * (limit + 1)
    for total in range(1, limit + 1):
        for count in counts:
            if count <= total and fewest[total - count] + 1 < fewest[total]:
                fewest[total], last[total] = fewest[total - count] + 1, count
    return last


def covered_pts(windows: Iterable[Window]) -> int:
    """Return the length of the union of windows, in units of the time base; stills have none."""
    covered, end = 0, None
    for start, length in sorted((window.start_pts, window.length_pts) for window in windows):
        begin = start if end is None else max(start, end)
        covered += max(0, start + length - begin)
        end = max(start + length, begin)
    return covered


def _loss(choice: SizeChoice, windows: Sequence[Window], span: ClipSpan) -> tuple[int, int, float]:
    """Return the key by which the best choice is the smallest."""
    lost = 1 - Fraction(covered_pts(windows), span.pts)
    return int(lost // LOST_SHARE_STEP), -choice.width * choice.height, -choice.fps


def _still_windows(choices: Sequence[SizeChoice], span: ClipSpan, rules: WindowRules) -> tuple[Window, ...]:
    """Return windows of the first frame, one per shape, or one of the largest area; the highest frame rate each."""
    fps_of: dict[tuple[int, int], float] = {}
    for choice in choices:
        if 1 in choice.frames:
            shape = choice.width, choice.height
            fps_of[shape] = max(choice.fps, fps_of.get(shape, 0.0))
    shapes = list(fps_of)
    if shapes and rules.sizes == "best":
        shapes = [max(shapes, key=lambda shape: (shape[0] * shape[1], fps_of[shape]))]
    return tuple(span.window(Bucket(*shape, 1, fps_of[shape]), span.start_pts) for shape in shapes)


def _reason(choices: Sequence[SizeChoice], span: ClipSpan, rules: WindowRules) -> str:
    """Return why a video clip has no window."""
    lengths = [Bucket(c.width, c.height, frames, c.fps) for c in choices for frames in c.frames if frames > 1]
    has_stills = any(1 in choice.frames for choice in choices)
    fix = "; set stills: true of encode to encode its first frame as an image" if has_stills else ""
    if not lengths:
        return f"no bucket that a video of its size could fill has more than 1 frame{fix}"
    shortest = min(lengths, key=lambda bucket: bucket.duration_s)
    return (
        f"{float(span.pts * span.time_base):.2f} s is shorter than {shortest.duration_s:.2f} s, the duration of "
        f"{shortest.frames} frames at {shortest.fps:g} fps{fix}"
    )
