"""Sampled spans: the frame shown at each time, to the PTS, bit for bit as in a full decode, at any size and crop."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.video.decode import DecodeError, probe, read_frames
from pipelines.video.spans import FrameGrid, read_span, target_pts
from tests.support.images import quarters
from tests.support.videos import B_FRAMES, LOSSLESS, encode, number_of, numbered

ONE_FRAME = FrameGrid(fps=1, frames=1, width=64, height=32)


def expected_pts(pts: list[int], start: int, end: int, fps: float, n: int, time_base: Fraction) -> list[int]:
    """Return the PTS that a span must show: of the last frame at or before each time, rounded half up to the time
    base."""
    shown = []
    for k in range(n):
        exact = start + k / (Fraction(fps).limit_denominator(1001) * time_base)
        time = min(int(exact + Fraction(1, 2)), end - 1)
        shown.append(max(p for p in pts if p <= time))
    return shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [B_FRAMES, {**B_FRAMES, "x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10"}]
)
def test_any_frame_can_be_sought_bit_for_bit(tmp_path: Path, options: dict[str, str]) -> None:
    path = str(encode(tmp_path / "gop.mp4", numbered(45), options=options))
    sequential = list(read_frames(path, 64, 32))
    for start, image in sequential:
        span = read_span(path, start, start + 1, ONE_FRAME)
        assert span.pts == (start,)
        assert np.array_equal(span.frames[0], image), f"the frame at PTS {start} depends on how it was reached"


@pytest.fixture(scope="session")
def vfr(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[int], Fraction]:
    """Return a video of variable frame rate, its PTS, and its time base."""
    pts = np.cumsum(np.random.default_rng(2).integers(5, 90, 80)).tolist()
    path = tmp_path_factory.mktemp("vfr") / "vfr.mkv"
    encode(path, numbered(80), pts=pts, time_base=Fraction(1, 1000), options=B_FRAMES)
    return str(path), pts, Fraction(1, 1000)


@pytest.mark.slow
@given(data=st.data(), n=st.integers(1, 12), fps=st.sampled_from([1.0, 4.0, 8.0, 23.976, 24000 / 1001, 30.0]))
def test_span_shows_the_last_frame_not_after_each_time(
    data: st.DataObject, n: int, fps: float, vfr: tuple[str, list[int], Fraction]
) -> None:
    path, pts, time_base = vfr
    start = data.draw(st.sampled_from(pts[:-2]))
    needed = (n - 1) / (Fraction(fps).limit_denominator(1001) * time_base)
    end = start + max(1, int(needed) + data.draw(st.integers(1, 300)))
    span = read_span(path, start, end, FrameGrid(fps, n, 64, 32))
    assert list(span.pts) == expected_pts(pts, start, end, fps, n, time_base)
    assert [pts[number_of(frame)] for frame in span.frames] == list(span.pts)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_coarse_time_base_neither_repeats_nor_skips_frames(tmp_path: Path, rate: int) -> None:
    """Matroska rounds PTS to milliseconds; sampled at the stream's rate, every frame must still come once."""
    path = str(encode(tmp_path / "ms.mkv", numbered(40), time_base=Fraction(1, rate), options=LOSSLESS))
    assert probe(path).time_base == Fraction(1, 1000)
    span = read_span(path, 0, 10_000, FrameGrid(rate, 40, 128, 64))
    assert [number_of(frame) for frame in span.frames] == list(range(40))
    half = read_span(path, 0, 10_000, FrameGrid(rate / 2, 20, 128, 64))
    assert [number_of(frame) for frame in half.frames] == list(range(0, 40, 2))


def test_end_is_exclusive_and_a_short_span_is_refused(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "end.mkv", numbered(30), time_base=Fraction(1, 10), options=LOSSLESS))
    span = read_span(path, 500, 1000, FrameGrid(10, 6, 64, 32))
    assert span.pts == (500, 600, 700, 800, 900, 900), "the frame at 1000 lies past the end"
    with pytest.raises(ValueError, match=r"7 frames at 10 fps need 0.6 s, but the span has 0.5 s"):
        read_span(path, 500, 1000, FrameGrid(10, 7, 64, 32))
    with pytest.raises(ValueError, match="the span has 0 s"):
        read_span(path, 500, 500, FrameGrid(10, 1, 64, 32))
    with pytest.raises(ValueError, match="must be positive"):
        read_span(path, 0, 500, FrameGrid(0, 1, 64, 32))


def test_span_past_the_end_of_the_file_fails(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "end.mkv", numbered(10), time_base=Fraction(1, 10), options=LOSSLESS))
    with pytest.raises(DecodeError, match=r"end\.mkv"):
        read_span(path, 60_000, 61_000, FrameGrid(10, 3, 64, 32))


@pytest.mark.slow
@given(
    start=st.integers(-(10**6), 10**9),
    fps=st.floats(0.5, 120),
    n=st.integers(1, 64),
    den=st.sampled_from([1000, 12288, 90000, 1000000]),
)
def test_target_pts_rise_and_stay_inside_the_span(start: int, fps: float, n: int, den: int) -> None:
    length = int((n - 1) / fps * den) + 2 * den
    targets = target_pts(start, start + length, fps, n, Fraction(1, den))
    assert targets[0] == start
    assert all(a <= b < start + length for a, b in zip(targets, targets[1:] + targets[-1:], strict=True))
    exact = start + (n - 1) / Fraction(fps).limit_denominator(1001) * den
    assert abs(targets[-1] - exact) <= Fraction(1, 2)


def test_centre_crop_and_given_crop(tmp_path: Path) -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:32, :64], image[:32, 64:] = (250, 0, 0), (0, 250, 0)
    image[32:, :64], image[32:, 64:] = (0, 0, 250), (250, 250, 250)
    path = str(encode(tmp_path / "quarters.mp4", [image] * 2, options=LOSSLESS))
    centred = read_span(path, 0, 10**6, FrameGrid(1, 1, 32, 32))
    assert centred.crop == (32, 0, 96, 64)
    assert centred.frames.shape == (1, 32, 32, 3)
    quarter = read_span(path, 0, 10**6, FrameGrid(1, 1, 40, 20), crop=(64, 0, 128, 32))
    assert quarter.crop == (64, 0, 128, 32)
    assert np.abs(quarter.frames[0, 2:-2, 2:-2].astype(int) - (0, 250, 0)).max() < 12
    with pytest.raises(ValueError, match=r"crop \(0, 0, 129, 64\) is not inside the image of 128x64"):
        read_span(path, 0, 10**6, FrameGrid(1, 1, 32, 32), crop=(0, 0, 129, 64))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.png", "png"), ("a.jpg", "jpeg"), ("a.webp", "webp"), ("a.bmp", "bmp"), ("a.tiff", "tiff")),
        *(("a.jfif", "jpeg"), ("a.jpe", "jpeg"), ("a.jp2", "jpeg2000"), ("a.ppm", "ppm"), ("a.tga", "tga")),
        *(("a.avif", "avif"), ("a.gif", "gif"), ("no_suffix", "jpeg"), ("UPPER.JPG", "jpeg"), ("a.mp4", "png")),
    ],
)
def test_span_of_a_still_image_is_the_image(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 95}, "avif": {"quality": 95}}.get(codec, {})
    Image.fromarray(quarters()).save(path, codec, **options)
    span = read_span(str(path), 0, 1, FrameGrid(fps=8, frames=1, width=32, height=32), kind="image")
    assert (span.frames.shape, span.frames.dtype) == ((1, 32, 32, 3), np.uint8)
    assert (span.pts, span.crop) == ((0,), (8, 0, 56, 48))
    assert np.abs(span.frames[0, 4, 4].astype(int) - (240, 20, 20)).max() < 12
    assert np.abs(span.frames[0, 4, 28].astype(int) - (20, 240, 20)).max() < 12
    with pytest.raises(ValueError, match=rf"9 frames of {re.escape(name)}: an image has 1"):
        read_span(str(path), 0, 1, FrameGrid(fps=8, frames=9, width=32, height=32), kind="image")


@pytest.mark.slow
def test_spans_of_footage_equal_a_full_decode(video_folder: Path) -> None:
    rng = np.random.default_rng(5)
    paths = [
        path
        for path in sorted(video_folder.glob("*.*"))
        if path.suffix != ".md" and path.stem not in ("corrupted", "motorcycle_2160p")
    ]
    grid = FrameGrid(fps=1, frames=1, width=64, height=64)
    for path in map(str, paths):
        sequential = list(read_frames(path, 64, 64))
        crop = (0, 0, probe(path).width, probe(path).height)
        for k in {0, len(sequential) - 1, *rng.integers(0, len(sequential), 3).tolist()}:
            pts, image = sequential[k]
            span = read_span(path, pts, pts + 1, grid, crop=crop)
            assert span.pts == (pts,), path
            assert np.array_equal(span.frames[0], image), f"{path} at PTS {pts}"
