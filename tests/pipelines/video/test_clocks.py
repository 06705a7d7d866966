"""Clocks of all kinds: the frames that were scanned are those that are read, and every frame is accounted for."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.arrays import Pixels
from pipelines.video.decode import DecodeError, read_frames
from pipelines.video.frame_images import FrameSampling, images_of_spans
from pipelines.video.gaps import MAX_FRAME_S
from pipelines.video.scan import ScanSettings, VideoScan, divide, join_pieces, scan_piece, scan_video
from pipelines.video.spans import FrameGrid, read_span
from tests.support.videos import B_FRAMES, encode, number_of, numbered, sliding

WIDTH, HEIGHT = 64, 32


class Clock(NamedTuple):
    """A container with its unit of time, whether it stores PTS, and options of the encoder and of the container."""

    suffix: str
    time_base: Fraction
    codec: str = "libx264"
    options: dict[str, str] = B_FRAMES
    container_options: dict[str, str] | None = None


CLOCKS = {
    "mkv": Clock("mkv", Fraction(1, 1000)),
    "mp4": Clock("mp4", Fraction(1, 12800)),
    "edit list": Clock("mp4", Fraction(1, 12800), container_options={"avoid_negative_ts": "disabled"}),
    "ts": Clock("ts", Fraction(1, 90000)),
    "avi": Clock("avi", Fraction(1, 25), "mpeg4", {"bf": "0"}),
    "h264": Clock("h264", Fraction(1, 25), options={**B_FRAMES, "bf": "0"}),
}

INTERVALS_MS = st.one_of(
    st.integers(8, 90),  # frame rates from 11 to 125
    st.just(40),
    st.integers(500, 9_000),  # a frame held on the screen
    st.integers(11_000, 1_000_000),  # a clock that jumps ahead
)


@st.composite
def times_s(draw: st.DrawFn, constant: bool) -> list[Fraction]:
    """Return the times of frames in seconds, mostly at the usual rates, some held and some after a jump."""
    if constant:
        return [Fraction(k, 25) for k in range(draw(st.integers(8, 40)))]
    usual = draw(st.lists(st.integers(8, 90), min_size=8, max_size=40))
    for index in draw(st.lists(st.integers(0, len(usual) - 1), max_size=3)):
        usual[index] = draw(INTERVALS_MS)
    start = draw(st.sampled_from([0, 0, 1400, -80]))
    return [Fraction(int(ms), 1000) for ms in np.cumsum([start, *usual]).tolist()]


def write(folder: Path, clock: Clock, times: list[Fraction]) -> tuple[str, list[int]]:
    path = encode(
        folder / f"clip.{clock.suffix}",
        numbered(len(times), WIDTH, HEIGHT),
        pts=[round(time / clock.time_base) for time in times],
        time_base=clock.time_base,
        codec=clock.codec,
        options=clock.options,
        container_options=clock.container_options,
    )
    return str(path), [round(time / clock.time_base) for time in times]


def decoded_by_ffmpeg(path: str) -> list[tuple[int, int]]:
    """Return the PTS and the number of each frame, as FFmpeg decodes the file from its start."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        frame_pts = round(Fraction(1, 25) / stream.time_base)
        frames = [(frame.pts, number_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(stream)]
    # Raw streams and AVI store no PTS: frames follow each other.
    return [(k * frame_pts if pts is None else pts, number) for k, (pts, number) in enumerate(frames)]


def all_frames(path: str) -> list[tuple[int, Pixels]] | DecodeError:
    """Return the PTS and the image of each frame of a file, or the error it fails with."""
    try:
        return list(read_frames(path, WIDTH, HEIGHT))
    except DecodeError as error:
        return error


def check_accounts(scan: VideoScan, frames: list[tuple[int, Pixels]]) -> None:
    """Every frame is in exactly one shot or transition, and no gap has one."""
    pts = [pts for pts, _ in frames]
    assert scan.media.n_frames == len(pts)
    spans = [(shot.start_pts, shot.end_pts) for shot in scan.shots]
    spans += [(b.start_pts, b.end_pts) for b in scan.boundaries if b.kind != "gap"]
    assert [sum(start <= p < end for start, end in spans) for p in pts] == [1] * len(pts)
    for shot in scan.shots:
        inside = [p for p in pts if shot.start_pts <= p < shot.end_pts]
        assert shot.n_frames == len(inside)
        assert set(shot.series.frames.pts_N.tolist()) <= set(inside)
        assert max(np.diff([*inside, shot.end_pts])) * scan.media.time_base <= MAX_FRAME_S


def check_readers(path: str, scan: VideoScan, frames: list[tuple[int, Pixels]], cuts: list[float]) -> None:
    """Readers of spans show the frames of the full decode, bit for bit."""
    pts = [p for p, _ in frames]
    image_of = dict(frames)
    spans = []
    for shot in scan.shots:
        length = shot.end_pts - shot.start_pts
        edges = sorted({shot.start_pts, shot.end_pts, *(shot.start_pts + int(cut * length) for cut in cuts)})
        spans += list(itertools.pairwise(edges))
    for start, end in reversed(spans):
        shown = max((p for p in pts if p <= start), default=pts[0])
        span = read_span(path, start, end, FrameGrid(fps=1, frames=1, width=WIDTH, height=HEIGHT))
        assert span.pts == (shown,)
        assert np.array_equal(span.frames[0], image_of[shown])
    for (start, end), images in zip(spans, images_of_spans(path, spans, FrameSampling(max_frames=1)), strict=True):
        assert not isinstance(images, Exception), images
        middle = max((p for p in pts if p <= (start + end) // 2), default=pts[0])
        assert images.times_s == (max(0.0, float((middle - start) * scan.media.time_base)),)


def test_a_last_frame_of_guessed_length_is_not_missing(tmp_path: Path) -> None:
    """FFmpeg takes this file for one frame per second, and its last frame for one second long."""
    times = [Fraction(ms, 1000) for ms in (0, 2767, 6898, 6906, 6914, 6986, 6994, 7002, 7012)]
    path, wanted_pts = write(tmp_path, CLOCKS["ts"], times)
    frames = all_frames(path)
    assert not isinstance(frames, DecodeError), frames
    assert len(frames) == len(wanted_pts)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOCKS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_scanned_frames_are_the_frames_read(name: str, data: st.DataObject, tmp_path: Path) -> None:
    clock = CLOCKS[name]
    times = data.draw(times_s(constant=name in ("avi", "h264")))
    path, wanted_pts = write(tmp_path, clock, times)
    frames = all_frames(path)
    if isinstance(frames, DecodeError):
        # An edit list may cut off most of so short a file, which is told.
        assert name in ("mp4", "edit list"), frames
        assert len(decoded_by_ffmpeg(path)) < len(times)
        with pytest.raises(DecodeError):
            scan_video(path)
        return
    numbers = [number_of(image) for _, image in frames]
    # FFmpeg leaves out what an edit list cuts off, frames before time 0 among others.
    assert [(pts, number) for (pts, _), number in zip(frames, numbers, strict=True)] == decoded_by_ffmpeg(path)
    assert numbers == sorted(numbers)
    if name not in ("mp4", "edit list"):
        assert numbers == list(range(len(times)))
    if name in ("mkv", "ts"):
        assert [p - frames[0][0] for p, _ in frames] == [p - wanted_pts[0] for p in wanted_pts]
    scan = scan_video(path)
    check_accounts(scan, frames)
    check_readers(path, scan, frames, data.draw(st.lists(st.floats(0, 1), max_size=2)))
    assert scan.media.n_misplaced_frames == 0


@pytest.mark.slow
def test_clock_that_starts_anew_fails_in_every_reader(tmp_path: Path) -> None:
    """Two transport streams joined byte by byte: no reader takes frames of one time for those of another."""
    clock = CLOCKS["ts"]
    first, _ = write(tmp_path, clock, [Fraction(k, 25) for k in range(50)])
    data = Path(first).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(data + data)
    message = r"joined\.ts: the clock jumps back by 1\.96 s .* ffmpeg -i joined\.ts -c copy joined\.mp4"
    with pytest.raises(DecodeError, match=message):
        scan_video(str(joined))
    with pytest.raises(DecodeError, match=message):
        list(read_frames(str(joined)))
    # Pieces would not see where the clock jumps.
    assert divide(str(joined)) == []


@pytest.mark.slow
def test_clock_that_jumps_ahead_ends_a_shot(tmp_path: Path) -> None:
    clock = CLOCKS["ts"]
    pts = [90_000 * k // 25 + (90_000_000 if k >= 50 else 0) for k in range(100)]
    path = str(encode(tmp_path / "jump.ts", sliding(100, 2.0, 128, 72), pts=pts, time_base=clock.time_base))
    scan = scan_video(path)
    assert [boundary.kind for boundary in scan.boundaries] == ["gap"]
    assert [float((shot.end_pts - shot.start_pts) * scan.media.time_base) for shot in scan.shots] == [2.0, 2.0]
    assert [(shot.transition_in, shot.transition_out) for shot in scan.shots] == [(None, "gap"), ("gap", None)]
    assert scan.media.source_duration_s == pytest.approx(4.0)
    whole = [scan_piece(path, ScanSettings(), *span) for span in ((0, 1), (1, None))]
    assert join_pieces(path, ScanSettings(), whole) == scan
