"""Images of clips: the frames at interval middles or at peaks of change, whatever other spans are taken with them."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines.steps.score._base import decode_jpeg
from pipelines.video import frame_images
from pipelines.video.decode import DecodeError, open_video, probe
from pipelines.video.frame_images import FrameImages, FrameSampling, images_of_spans, interval_middles
from pipelines.video.still_images import encode_jpeg
from tests.support.videos import encode, number_of, numbered, sliding, with_hole

SAMPLING = FrameSampling(fps=4.0, max_frames=8, long_side=128, quality=95)


def numbers_of(taken: FrameImages | Exception) -> list[int]:
    assert isinstance(taken, FrameImages), taken
    return [number_of(decode_jpeg(data)) for data in taken.images]


@pytest.mark.slow
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.integers(1, 64))
def test_interval_middles_against_exact_fractions(start: int, length: int, count: int) -> None:
    found = interval_middles(start, start + length, count)
    assert all(start <= pts < start + length for pts in found)
    assert found == sorted(found)
    for k, pts in enumerate(found):
        assert 0 <= start + Fraction(length * (2 * k + 1), 2 * count) - pts < 1


@pytest.mark.parametrize(
    ("seconds", "count"), [(0, 1), (Fraction(2, 5), 1), (Fraction(3, 2), 2), (3, 3), (Fraction(17, 2), 8), (60, 8)]
)
def test_number_of_frames_by_duration(seconds: Fraction, count: int) -> None:
    assert FrameSampling().count(Fraction(seconds)) == count


def test_images_are_the_frames_shown_at_interval_middles(tmp_path: Path) -> None:
    """There are gaps between frames; the expected ones follow from the whole PTS of the frames that were written."""
    gaps = [1, 3, 1, 7, 2, 2, 5, 1, 1, 4] * 6
    pts = [1000, *itertools.accumulate(gaps[:-1], initial=1000)][1:]
    path = encode(
        tmp_path / "gaps.mkv", numbered(60), pts=pts, time_base=Fraction(1, 30), options={"g": "20", "bf": "2"}
    )
    info = probe(str(path))
    stored = [round(Fraction(p, 30) / info.time_base) for p in pts]
    first, end = stored[0], stored[-1] + round(Fraction(1, 30) / info.time_base)
    spans = [(first, end), (stored[7] + 1, stored[31]), (stored[31], stored[32]), (stored[50], end)]
    for (start, stop), taken in zip(spans, images_of_spans(str(path), spans, SAMPLING), strict=True):
        wanted = interval_middles(start, stop, SAMPLING.count((stop - start) * info.time_base))
        shown = [max((k for k in range(60) if stored[k] <= pts), default=0) for pts in wanted]
        assert numbers_of(taken) == sorted(set(shown))
        assert isinstance(taken, FrameImages)
        assert taken.times_s == tuple(max(0.0, float((stored[k] - start) * info.time_base)) for k in sorted(set(shown)))


@pytest.mark.slow
def test_distant_times_are_sought_among_key_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "intra.mp4", numbered(120), options={"g": "1"})
    sampling = FrameSampling(1.0, 8, 128, 95)
    with open_video(str(path)) as video:
        tick = round(1 / (30 * video.info.time_base))
    span = (tick * 10, tick * 120)
    seeks: list[int] = []
    seek = frame_images.Video.seek
    monkeypatch.setattr(frame_images.Video, "seek", lambda self, pts: seeks.append(pts) or seek(self, pts))
    (sought,) = images_of_spans(str(path), [span], sampling)
    assert len(seeks) == 1 + 4, "one for the clip, and one per image"
    monkeypatch.setattr(frame_images, "MIN_SEEK_GROUPS", 10**6)
    assert images_of_spans(str(path), [span], sampling) == [sought]
    assert numbers_of(sought) == [10 + 110 * (2 * k + 1) // 8 for k in range(4)]


def test_images_are_upright_and_never_enlarged(tmp_path: Path) -> None:
    path = encode(tmp_path / "turned.mp4", sliding(10, 1.0, 320, 160), rotation_deg=90)
    info = probe(str(path))
    assert (info.width, info.height) == (160, 320)
    for long_side, size in ((80, (40, 80)), (448, (160, 320))):
        (taken,) = images_of_spans(str(path), [(0, 512 * 10)], FrameSampling(long_side=long_side))
        assert isinstance(taken, FrameImages)
        assert [Image.open(io.BytesIO(data)).size for data in taken.images] == [size]


@pytest.mark.slow
def test_damage_between_two_spans_fails_neither(tmp_path: Path) -> None:
    """The second span is first reached by decoding through the damage, then from a key frame after it."""
    good = encode(tmp_path / "good.mp4", numbered(60), options={"g": "10"})
    hole = with_hole(tmp_path / "hole.mp4", good)
    spans = [(0, 9 * 512), (50 * 512, 60 * 512)]
    assert isinstance(images_of_spans(str(hole), [(0, 60 * 512)], SAMPLING)[0], DecodeError)
    assert images_of_spans(str(hole), spans, SAMPLING) == images_of_spans(str(good), spans, SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "av1_640x360.mkv",
        "hevc_10bit_200x200.mp4",
        "mpeg4_320x240.avi",
        "talk_640x360.mp4",
        "nasa_320x180.mp4",
        "rotated_90.mov",
    ],
)
def test_footage_against_decoding_every_frame(video_folder: Path, name: str) -> None:
    uri = str(video_folder / name)
    sampling = FrameSampling(2.0, 5, 200, 90)
    with open_video(uri) as video:
        size = sampling.size(video.info.width, video.info.height)
        time_base = video.info.time_base
        every = [(frame.pts, encode_jpeg(video.to_array(frame.frame, *size), 90)) for frame in video.decoded_frames()]
    first, end = every[0][0], every[-1][0] + 1
    edges = [first + (end - first) * k // 3 for k in range(4)]
    for (start, stop), taken in zip(
        itertools.pairwise(edges), images_of_spans(uri, list(itertools.pairwise(edges)), sampling), strict=True
    ):
        wanted = interval_middles(start, stop, sampling.count((stop - start) * time_base))
        shown = dict.fromkeys(
            max((k for k, (frame_pts, _) in enumerate(every) if frame_pts <= pts), default=0) for pts in wanted
        )
        assert isinstance(taken, FrameImages), taken
        assert taken.images == tuple(every[k][1] for k in shown)


def test_span_that_starts_before_the_file_shows_its_first_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", numbered(30), pts=list(range(300, 330)))
    with open_video(str(path)) as video:
        first = video.info.start_pts
    (taken,) = images_of_spans(str(path), [(first - 100, first + 1)], SAMPLING)
    assert numbers_of(taken) == [0]
    (error,) = images_of_spans(str(path), [(first - 100, first - 50)], SAMPLING)
    assert isinstance(error, DecodeError)


def every_frame(path: Path, size: tuple[int, int]) -> list[tuple[int, NDArray[np.int16]]]:
    with open_video(str(path)) as video:
        return [
            (frame.pts, video.to_array(frame.frame, *size, "gray8").astype(np.int16))
            for frame in video.decoded_frames()
        ]


def peaks(every: list[tuple[int, NDArray[np.int16]]], start: int, end: int, count: int) -> list[int]:
    """Return the PTS of the frame of each part that differs most from the frame before, from all frames of the file."""
    first = max((i for i, (pts, _) in enumerate(every) if pts <= start), default=0)
    own = [i for i in range(first, len(every)) if every[i][0] < end]
    found = []
    for k in range(count):
        low, high = start + Fraction((end - start) * k, count), start + Fraction((end - start) * (k + 1), count)
        inside = [i for i in own if low <= every[i][0] < high or (k == 0 and i == first)]
        if inside:
            changes = {i: -1.0 if i == first else float(np.abs(every[i][1] - every[i - 1][1]).mean()) for i in inside}
            found.append(every[max(inside, key=lambda i: (changes[i], -i))][0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("gaps", [[1], [1, 3, 1, 7, 2, 2, 5, 1, 1, 4], [40]])
def test_peaks_are_the_frames_that_change_most(tmp_path: Path, gaps: list[int]) -> None:
    n = 60 if gaps != [40] else 8
    steps = np.random.default_rng(1).choice([0, 1, 2, 9], n).cumsum()
    texture = sliding(int(steps.max()) + 1, 1.0)
    pts = [1000, *itertools.accumulate((gaps * n)[: n - 1], initial=1000)][1:]
    path = encode(
        tmp_path / "jumps.mkv",
        [texture[step] for step in steps],
        pts=pts,
        time_base=Fraction(1, 30),
        options={"g": "12", "bf": "2"},
    )
    every = every_frame(path, (64, 36))
    first, end = every[0][0], every[-1][0] + 30
    third = (end - first) // 3
    spans = [(first, end), (first + third + 1, first + 2 * third), (first + 2 * third, end)]
    sampling = FrameSampling(fps=4.0, max_frames=6, long_side=128, quality=95, at="peaks")
    time_base = probe(str(path)).time_base
    for (start, stop), taken in zip(spans, images_of_spans(str(path), spans, sampling), strict=True):
        count = sampling.count((stop - start) * time_base)
        wanted = list(dict.fromkeys(peaks(every, start, stop, count)))
        assert isinstance(taken, FrameImages), taken
        assert taken.times_s == tuple(float(max(0, pts - start) * time_base) for pts in wanted)
    assert [images_of_spans(str(path), [span], sampling)[0] for span in spans] == images_of_spans(
        str(path), spans, sampling
    )
