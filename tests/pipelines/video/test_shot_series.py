"""The stored series of a shot: signals of any span are those of the span alone, whatever lies around it."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.video.detailed_sample import SampleValues
from pipelines.video.motion import PairMotion, split_at_held_frames
from pipelines.video.shot_series import FrameSeries, ShotSeries, motions_of_content
from pipelines.video.signals import repeat_shares, span_signals

FPS = 24


def sample(pts: int, luma: float = 0.5) -> SampleValues:
    return SampleValues(pts, luma, 0.2, 0.0, 0.0, 0.01, 20.0, 1.0, 1.0, True)


def shot(
    pts: list[int], peaks: list[float], end_pts: int, samples: tuple[SampleValues, ...] = (), start_pts: int = 0
) -> ShotSeries:
    """Return the series of a shot whose frames have these PTS and largest changes; the time base is 1/24 s."""
    n = len(pts)
    frames = FrameSeries(
        np.array(pts), np.zeros(n, np.int32), np.array(peaks, np.float32), np.linspace(0, 1, n, dtype=np.float32)
    )
    motions = tuple(
        PairMotion(pts[i], pts[i + 4], 0.0 if max(peaks[i + 1 : i + 5]) < 1 else 0.1) for i in range(0, n - 4, 4)
    )
    return ShotSeries(start_pts, end_pts, Fraction(1, FPS), 1.0, frames, motions, samples or (sample(0),))


def half_frozen(seconds: int = 8) -> ShotSeries:
    """Return a shot that is frozen for some seconds, then moves for as long."""
    n = seconds * FPS
    samples = tuple(sample(k * FPS, k / 100) for k in range(2 * seconds))
    return shot(list(range(2 * n)), [30.0, *[0.1] * (n - 1), *[9.0] * n], 2 * n, samples)


def test_signals_are_those_of_the_clip_and_not_of_the_shot() -> None:
    series = half_frozen()
    frozen, both, moving = (span_signals(series, start * FPS, end * FPS) for start, end in ((0, 8), (6, 10), (8, 16)))
    assert (frozen.frozen_share, moving.frozen_share) == (1.0, 0.0)
    assert both.frozen_share == pytest.approx(0.5, abs=0.02)
    assert (frozen.motion, moving.motion) == (0.0, pytest.approx(0.1, rel=0.05))
    assert (frozen.luma, moving.luma) == (pytest.approx(0.035), pytest.approx(0.115))


def test_clip_between_two_samples_takes_the_nearest() -> None:
    series = half_frozen()
    assert span_signals(series, 2 * FPS + 2, 2 * FPS + 6).luma == 0.02
    assert span_signals(series, 3 * FPS - 8, 3 * FPS - 2).luma == 0.03


def test_frame_held_for_longer_than_usual_is_frozen() -> None:
    """One second of motion, a frame shown for five seconds, one second of motion: as if the frame were repeated."""
    held = shot([*range(24), *range(143, 168)], [9.0] * 49, 168)
    assert repeat_shares(held, 0, 168)[0] == pytest.approx(5 / 7, abs=0.01)
    assert repeat_shares(held, 48, 96) == (1.0, None)
    assert repeat_shares(held, 0, 23)[0] == 0.0
    # The last frame of a shot, held until the shot ends, and a shot of one frame.
    assert repeat_shares(shot(list(range(24)), [9.0] * 24, 120), 0, 120)[0] == pytest.approx(0.8, abs=0.01)
    assert repeat_shares(shot([0], [9.0], 120), 24, 72)[0] == 1.0
    assert repeat_shares(shot([0], [9.0], 1), 0, 1)[0] == 0.0


def test_motion_across_a_held_frame_happens_at_its_end() -> None:
    pair = PairMotion(0, 240, 0.1, pan=0.05, zoom=0.01, local=0.02)
    still, moved = split_at_held_frames([pair], Fraction(1, FPS))
    assert (still, still.speed) == (PairMotion(0, 228, 0.0), 0.0)
    assert (moved.start_pts, moved.end_pts) == (228, 240)
    assert [value * 12 for value in (moved.speed, moved.pan, moved.zoom, moved.local)] == pytest.approx(
        [value * 240 for value in (pair.speed, pair.pan, pair.zoom, pair.local)]
    )
    usual = PairMotion(0, 13, 0.1)
    assert list(split_at_held_frames([usual], Fraction(1, FPS))) == [usual]


def test_bars_dilute_no_motion() -> None:
    """Letterbox of a quarter: means over three quarters of the blocks; pillarbox: lengths in the image's long side."""
    pair = PairMotion(0, 4, 0.3, pan=0.3, local=0.1, zoom=0.2)
    (letterbox,) = motions_of_content([pair], (0.0, 0.125, 1.0, 0.875), 1280, 720)
    assert (letterbox.speed, letterbox.local) == pytest.approx((0.4, 0.1 / 0.75))
    assert (letterbox.pan, letterbox.zoom, letterbox.known_share) == pytest.approx((0.3, 0.2, 1.0))
    (pillarbox,) = motions_of_content([pair], (0.25, 0.0, 0.75, 1.0), 1280, 640)
    assert (pillarbox.speed, pillarbox.pan) == pytest.approx((0.3 * 2 * 2, 0.3 * 2))
    assert motions_of_content([pair], (0.0, 0.0, 1.0, 1.0), 1280, 720) == (pair,)


def test_series_survives_its_columns() -> None:
    series = dataclasses.replace(half_frozen(2), cut_in=1.5)
    columns = {**series.to_columns(), "start_pts": series.start_pts, "end_pts": series.end_pts}
    restored = ShotSeries.from_columns(columns, series.time_base)
    assert (restored.motions, restored.samples, restored.cut_in) == (series.motions, series.samples, 1.5)
    assert span_signals(restored, 5, 40) == span_signals(series, 5, 40)


@st.composite
def shots(draw: st.DrawFn) -> ShotSeries:
    gaps = draw(st.lists(st.integers(1, 60), min_size=1, max_size=40))
    pts = np.cumsum([0, *gaps[:-1]]).tolist()
    peaks = draw(st.lists(st.sampled_from([0.0, 0.4, 3.0, 20.0]), min_size=len(pts), max_size=len(pts)))
    return shot(pts, peaks, pts[-1] + gaps[-1])


@pytest.mark.slow
@given(shots(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_shares_of_spans_are_shares(series: ShotSeries, cuts: list[float]) -> None:
    """Spans that divide a shot have shares in [0, 1], and a wholly frozen shot has wholly frozen parts."""
    edges = sorted({series.start_pts, series.end_pts, *(round(cut * series.end_pts) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        frozen_share, duplicate_share = repeat_shares(series, start, end)
        assert 0.0 <= frozen_share <= 1.0
        assert duplicate_share is None or 0.0 <= duplicate_share <= 1.0
        signals = span_signals(series, start, end)
        assert signals.motion is not None
        assert 0.0 <= signals.motion <= 0.1 + 1e-9
