"""Windows of a clip: they cover it best, lie inside it, and have the lengths of buckets."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.buckets import BucketSettings, SizeChoice
from training.data.windows import (
    ClipSpan,
    Window,
    WindowRules,
    choose_lengths,
    choose_windows,
    cover,
    covered_pts,
)

TIME_BASES = st.sampled_from([Fraction(1, 12800), Fraction(1, 90000), Fraction(1, 1000), Fraction(1001, 24000)])
FRAMES = st.lists(st.integers(1, 20).map(lambda k: 1 + 4 * k), min_size=1, max_size=4, unique=True).map(tuple)
RATES = st.sampled_from([6.0, 8.0, 16.0, 23.976, 24.0])
MS = Fraction(1, 1000)


def clip(seconds: float, time_base: Fraction = MS, start_pts: int = 700) -> ClipSpan:
    return ClipSpan(start_pts, start_pts + round(seconds / time_base), time_base)


def at_8_fps(*frames: int) -> SizeChoice:
    return SizeChoice(64, 64, 8.0, frames)


def spans_s(windows: tuple[Window, ...], span: ClipSpan) -> list[tuple[float, float]]:
    """Return the first and last time of each window in seconds from the clip's start."""
    return [
        (
            float((one.start_pts - span.start_pts) * span.time_base),
            float((one.start_pts + one.length_pts - span.start_pts) * span.time_base),
        )
        for one in windows
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.9, []),
        (2.0, [(0, 2)]),
        (2.9, [(0, 2)]),
        # Leaving out a second or covering one twice cost the same: nothing is left out.
        (3.0, [(0, 2), (1, 3)]),
        (3.9, [(0, 2), (1.9, 3.9)]),
        (4.5, [(0, 4)]),
        (6.0, [(0, 4), (4, 6)]),
        (7.0, [(0, 4), (3, 7)]),
        (10.0, [(0, 4), (4, 8), (8, 10)]),
        (11.5, [(0, 4), (3.75, 7.75), (7.5, 11.5)]),
    ],
)
def test_windows_of_2_and_4_seconds(seconds: float, expected: list[tuple[float, float]]) -> None:
    span = clip(seconds)
    assert spans_s(cover(span, at_8_fps(1, 17, 33)), span) == expected


def test_first_is_one_window_of_the_longest_length() -> None:
    assert spans_s(cover(clip(9.0), at_8_fps(1, 17, 33), "first"), clip(9.0)) == [(0, 4)]


def nearest_sum(counts: tuple[int, ...], steps: Fraction) -> tuple[Fraction, int, int]:
    """Return the (distance, negative sum, number) of the best multiset of counts, by trying all."""
    best = None
    for number in range(1, int(steps // min(counts)) + 2):
        for chosen in itertools.combinations_with_replacement(counts, number):
            key = abs(sum(chosen) - steps), -sum(chosen), number
            best = key if best is None else min(best, key)
    assert best is not None
    return best


@pytest.mark.slow
@given(FRAMES.filter(lambda frames: len(frames) < 4), st.fractions(4, 60, max_denominator=50))
def test_lengths_are_the_best_of_all_multisets(frames: tuple[int, ...], steps: Fraction) -> None:
    usable = tuple(count for count in frames if count - 1 <= steps)
    if not usable:
        return
    counts = tuple(count - 1 for count in usable)
    chosen = [count - 1 for count in choose_lengths(usable, steps)]
    assert set(chosen) <= set(counts)
    assert (abs(sum(chosen) - steps), -sum(chosen), len(chosen)) == nearest_sum(counts, steps)


def greedy_s(frames: tuple[int, ...], fps: float, seconds: Fraction) -> Fraction:
    """Return the seconds that windows cover which follow each other, each the longest that fits."""
    rate, left = Fraction(fps).limit_denominator(1001), seconds
    for length in sorted(((count - 1) / rate for count in frames), reverse=True):
        left -= left // length * length
    return seconds - left


@pytest.mark.slow
@given(FRAMES, RATES, TIME_BASES, st.fractions(0, 700, max_denominator=1000), st.integers(-(10**6), 10**9))
def test_windows_lie_in_the_clip_and_cover_it(
    frames: tuple[int, ...], fps: float, time_base: Fraction, seconds: Fraction, start_pts: int
) -> None:
    span = ClipSpan(start_pts, start_pts + round(seconds / time_base), time_base)
    windows = cover(span, SizeChoice(64, 64, fps, frames))
    assert bool(windows) == (0 < span.pts >= span.length_pts(min(frames), fps))
    if not windows:
        return
    for one in windows:
        assert one.bucket.frames in frames
        assert one.length_pts == span.length_pts(one.bucket.frames, fps)
        assert span.start_pts <= one.start_pts <= one.start_pts + one.length_pts <= span.end_pts
        # The exclusive end is right after the last frame, so its time can be sampled.
        assert one.end_pts == min(one.start_pts + one.length_pts + 1, span.end_pts)
    assert [one.bucket.frames for one in windows] == sorted((one.bucket.frames for one in windows), reverse=True)
    assert windows[0].start_pts == span.start_pts
    total = sum(one.length_pts for one in windows)
    seams = [b.start_pts - a.start_pts - a.length_pts for a, b in itertools.pairwise(windows)]
    if total <= span.pts:
        assert set(seams) <= {0}
    else:
        assert windows[-1].start_pts + windows[-1].length_pts == span.end_pts
        assert max(seams) <= 0
        assert max(seams) - min(seams) <= 1
    # Each window rounds its length to the time base.
    rounding = len(windows) + 1
    covered, greedy = covered_pts(windows), greedy_s(frames, fps, span.pts * time_base) / time_base
    assert covered >= greedy - rounding
    assert (span.pts - covered) + (total - covered) <= span.pts - greedy + rounding


@pytest.mark.slow
def test_ten_minutes_and_ten_hours_are_fast() -> None:
    for seconds in (600.0, 36000.0):
        span = clip(seconds + 0.3)
        windows = cover(span, SizeChoice(64, 64, 24.0, (17, 49, 121)))
        assert covered_pts(windows) / span.pts > 0.999
        assert {one.bucket.frames for one in windows} <= {17, 49, 121}


SIZES = [BucketSettings(size=64, frames=(1, 17, 33), fps=8), BucketSettings(size=128, frames=(1, 17), fps=8)]


def names(windows: tuple[Window, ...] | str) -> list[str]:
    assert not isinstance(windows, str)
    return [one.bucket.name for one in windows]


def test_every_size_that_need_not_enlarge_gets_the_clip() -> None:
    found = choose_windows(SIZES, (1280, 720), clip(6.0), False, WindowRules())
    assert names(found) == ["80x48x33", "80x48x17", *["176x96x17"] * 3]
    assert names(choose_windows(SIZES, (160, 90), clip(6.0), False, WindowRules())) == ["80x48x33", "80x48x17"]
    assert names(choose_windows(SIZES, (1280, 720), clip(0.0), True, WindowRules())) == ["80x48x1", "176x96x1"]


def test_best_size_is_the_largest_that_loses_little() -> None:
    best = WindowRules(sizes="best")
    assert names(choose_windows(SIZES, (1280, 720), clip(6.0), False, best)) == ["176x96x17"] * 3
    # At 128 pixels the only length is 4 s, which leaves out a third.
    sizes = [BucketSettings(size=64, frames=(17,), fps=8), BucketSettings(size=128, frames=(33,), fps=8)]
    assert names(choose_windows(sizes, (1280, 720), clip(5.9), False, best)) == ["80x48x17"] * 3
    # It leaves out less than a tenth more.
    assert names(choose_windows(sizes, (1280, 720), clip(4.3), False, best)) == ["176x96x33"]
    rates = [BucketSettings(size=64, frames=(9,), fps=fps) for fps in (8, 16)]
    assert {one.bucket.fps for one in choose_windows(rates, (1280, 720), clip(2.0), False, best)} == {16.0}  # type: ignore[union-attr]
    assert names(choose_windows(SIZES, (1280, 720), clip(0.0), True, best)) == ["176x96x1"]


def test_a_video_becomes_a_still_only_if_the_rules_say_so() -> None:
    short = clip(1.5)
    assert choose_windows(SIZES, (1280, 720), short, False, WindowRules()) == (
        "1.50 s is shorter than 2.00 s, the duration of 17 frames at 8 fps; set stills: true of encode to encode its "
        "first frame as an image"
    )
    stills = choose_windows(SIZES, (1280, 720), short, False, WindowRules(stills=True))
    assert names(stills) == ["80x48x1", "176x96x1"]
    assert all(one.start_pts == short.start_pts for one in stills)  # type: ignore[union-attr]
    # A clip that is long enough gives no still.
    assert not any(
        "x1" in name[-2:]
        for name in names(choose_windows(SIZES, (1280, 720), clip(9.0), False, WindowRules(stills=True)))
    )


def test_buckets_of_images_alone_take_no_video() -> None:
    of_images = [BucketSettings(size=64, frames=(1,), fps=8)]
    reason = choose_windows(of_images, (640, 360), clip(5.0), False, WindowRules())
    assert reason == (
        "no bucket that a video of its size could fill has more than 1 frame; set stills: true of encode to encode its "
        "first frame as an image"
    )
    assert names(choose_windows(of_images, (640, 360), clip(5.0), False, WindowRules(stills=True))) == ["80x48x1"]


def test_an_image_is_encoded_once_per_shape() -> None:
    rates = [BucketSettings(size=64, frames=(1, 9), fps=fps) for fps in (8, 16)]
    found = choose_windows(rates, (640, 360), ClipSpan(0, 1, Fraction(1)), True, WindowRules())
    assert [(one.bucket.name, one.bucket.fps) for one in found] == [("80x48x1", 16.0)]  # type: ignore[union-attr]
    videos = [BucketSettings(size=64, frames=(9,), fps=8)]
    assert choose_windows(videos, (640, 360), ClipSpan(0, 1, Fraction(1)), True, WindowRules()) == (
        "it is an image, and no bucket it could fill has 1 among its frames"
    )


def test_union_of_windows_counts_overlaps_once() -> None:
    span = clip(7.0)
    windows = cover(span, at_8_fps(17, 33))
    assert covered_pts(windows) == 7000
    assert covered_pts([*windows, *cover(span, at_8_fps(9))]) == 7000
    assert covered_pts([]) == 0
