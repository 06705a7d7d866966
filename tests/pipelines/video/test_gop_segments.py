"""GOP segments: pieces join to the scan of the whole bit for bit, and every frame is decoded or counted as skipped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from cluster.arrays import Pixels
from pipelines.video import scan as scanning
from pipelines.video.decode import open_video, read_frames
from pipelines.video.gop_segments import (
    ANCHOR_INTERVAL_S,
    Decoders,
    GopSegments,
    NotSplittableError,
    always_decoded,
    decode_segment,
    decode_windows,
)
from pipelines.video.scan import ScanSettings, VideoScan, divide, join_pieces, scan_piece, scan_video
from pipelines.video.shot_boundaries import DetectorName
from tests.support.images import soft_patches, tinted
from tests.support.videos import encode, numbered, sliding

pytestmark = pytest.mark.slow

CLOSED = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=60:min-keyint=60:scenecut=0"}
OPEN = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=60:min-keyint=60:scenecut=0:open-gop=1"}
UNFILTERED = {
    "bf": "3",
    "preset": "veryfast",
    "x264-params": "keyint=60:min-keyint=60:scenecut=0:no-deblock=1:b-adapt=0",
}
INTRA_REFRESH = {"preset": "veryfast", "x264-params": "keyint=60:intra-refresh=1"}


@functools.cache
def film(seconds: int = 21) -> Pixels:
    """Draw shots of 2.5 to 4.5 s at 24 fps, none of which ends where a group of pictures does, and a dissolve.

    The frames are shared and cannot be changed.
    """
    lengths = [70, 83, 95, 61, 107, 88]
    colours = [(255, 80, 60), (60, 120, 255), (240, 240, 90), (90, 220, 120), (200, 90, 220), (250, 250, 250)]
    shots = [tinted(n, colour, seed=seed) for seed, (n, colour) in enumerate(zip(lengths, colours, strict=True))]
    alpha = np.linspace(0, 1, 14)[1:-1, None, None, None]
    mixed = ((1 - alpha) * shots[2][-12:] + alpha * shots[3][:12]).astype(np.uint8)
    frames = np.concatenate([*shots[:2], shots[2][:-12], mixed, shots[3][12:], *shots[4:]])[: seconds * 24]
    frames.setflags(write=False)
    return frames


def write_film(path: Path, options: dict[str, str], frames: Pixels | None = None) -> str:
    """Write frames (the film by default) at 24 fps with x264."""
    frames = film() if frames is None else frames
    return str(encode(path, frames, time_base=Fraction(1, 24), options=options))


def scan_in_pieces(path: str, settings: ScanSettings, edges: Sequence[int | None]) -> VideoScan:
    """Scan the intervals between edges separately and join them; the first edge is 0, the last None."""
    pieces = [scan_piece(path, settings, first or 0, end) for first, end in pairwise(edges)]
    return join_pieces(path, settings, pieces)


@pytest.mark.parametrize("options", [CLOSED, OPEN, UNFILTERED])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pieces_join_to_the_scan_of_the_whole(tmp_path: Path, options: dict[str, str], suffix: str) -> None:
    path = write_film(tmp_path / f"film.{suffix}", options)
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert len(whole.boundaries) == 5
    for edges in ([0, 2, None], [0, 1, 2, 3, 4, None], [0, 3, None], [0, 2, 40, None]):
        assert scan_in_pieces(path, settings, edges) == whole, edges


def test_dark_piece_has_the_bars_of_the_whole(tmp_path: Path) -> None:
    """Bars are agreed on over all shots, when the pieces are joined: the piece in the middle shows none of them."""
    day, night = film(12), np.zeros((6 * 24, 96, 160, 3), np.uint8)
    lamp = soft_patches(1, 3)[0, 30:60, 50:90] // 2
    for number, frame in enumerate(night):
        frame[30:60, 30 + number // 3 : 70 + number // 3] = lamp
    boxed = np.pad(np.concatenate([day[:144], night, day[144:]]), ((0, 0), (16, 16), (0, 0), (0, 0)))
    path = write_film(tmp_path / "film.mp4", CLOSED, boxed)
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert {shot.crop for shot in whole.shots} == {(0, 16, 160, 112)}
    assert any(shot.signals.luma < 0.1 for shot in whole.shots)
    assert scan_in_pieces(path, settings, [0, 1, 2, None]) == whole


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_pieces_join_for_detectors_that_need_every_frame(tmp_path: Path, detector: DetectorName) -> None:
    path = write_film(tmp_path / "film.mp4", OPEN)
    settings = ScanSettings(detector=detector)
    assert scan_in_pieces(path, settings, [0, 2, None]) == scan_video(path, settings)


def test_every_frame_is_decoded_or_counted(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", CLOSED)
    every = [pts for pts, _ in read_frames(path, 16, 16)]
    with open_video(path) as video:
        decoders = Decoders(video)
        segments = [list(decode_segment(decoders, segment)) for segment in GopSegments(video)]
    for segment, following in pairwise(segments):
        first_pts, next_pts = segment[0].decoded.pts, following[0].decoded.pts
        assert segment[-1].decoded.pts == next_pts, "neighbours share the anchor between them"
        assert float((next_pts - first_pts) * Fraction(1, 24 * 512)) >= ANCHOR_INTERVAL_S - 0.01
    pts = sorted({item.decoded.pts for segment in segments for item in segment})
    assert set(pts) <= set(every)
    assert len(pts) < 0.8 * len(every), "frames that no other frame refers to are skipped"
    assert sum(item.n_skipped for segment in segments for item in segment) + len(pts) == len(every)
    for segment in segments:
        for before, item in pairwise(segment):
            assert item.n_skipped == sum(before.decoded.pts < p < item.decoded.pts for p in every)


def test_skipped_frames_can_be_decoded_later_bit_for_bit(tmp_path: Path) -> None:
    """In a stream without a loop filter only frames are skipped, so those decoded are those of a full decode."""
    path = write_film(tmp_path / "film.mp4", UNFILTERED, film(8))
    full = dict(read_frames(path, pixel_format="gray8"))
    every = sorted(full)
    windows = [(every[3], every[9]), (every[9], every[12]), (every[50], every[58]), (every[100], every[131])]
    with open_video(path) as video:
        size = video.info.width, video.info.height
        found: dict[tuple[int, int], list[int]] = {}
        for window, decoded in decode_windows(Decoders(video), list(video.packets()), windows):
            found.setdefault(window, []).append(decoded.pts)
            assert np.array_equal(video.to_array(decoded.frame, *size, "gray8"), full[decoded.pts])
    assert found == {window: [p for p in every if window[0] <= p <= window[1]] for window in windows}


def test_endless_gop_is_decoded_in_full_and_loop_filtered(tmp_path: Path) -> None:
    frames = np.concatenate([soft_patches(48, seed) for seed in range(8)])
    options = {"bf": "3", "x264-params": "keyint=infinite:scenecut=0"}
    path = write_film(tmp_path / "endless.mp4", options, frames)
    full = dict(read_frames(path, 64, 40, "gray8"))
    with open_video(path) as video:
        decoders = Decoders(video)
        for segment in GopSegments(video):
            assert not segment.skips_frames
            for item in decode_segment(decoders, segment):
                assert item.n_skipped == 0
                decoded = item.decoded
                assert np.array_equal(video.to_array(decoded.frame, 64, 40, "gray8"), full.pop(decoded.pts))
    assert not full


def test_key_frames_that_need_others_are_no_anchors(tmp_path: Path) -> None:
    """With intra refresh a stream can be entered anywhere, and no single frame is complete without others."""
    path = write_film(tmp_path / "refresh.mp4", INTRA_REFRESH)
    with pytest.raises(NotSplittableError, match="cannot be decoded without the frames before it"):
        scan_piece(path, ScanSettings(), 1, None)
    scan = scan_video(path)
    assert scan.media.n_frames == len(list(read_frames(path, 16, 16)))


@pytest.mark.parametrize("codec", ["mpeg4", "ffv1", "libx265"])
def test_segments_of_other_codecs(tmp_path: Path, codec: str) -> None:
    path = str(encode(tmp_path / "film.mkv", film(11), codec=codec, time_base=Fraction(1, 24), options={"g": "48"}))
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert scan_in_pieces(path, settings, [0, 1, None]) == whole
    assert [boundary.kind for boundary in whole.boundaries] == ["cut", "cut", "dissolve"]


def test_packets_that_look_like_cuts() -> None:
    def packet(pts: int, size: int, key: bool = False) -> av.Packet:
        made = av.Packet(bytes(size))
        made.pts, made.is_keyframe = pts, key
        return made

    shown = list(range(199))
    even = [packet(i, 3000 if i % 66 == 0 else 400 if i % 4 == 0 else 80, i % 66 == 0) for i in shown]
    assert always_decoded(even, shown, 6) == frozenset([*range(6), 198]), "GOPs of one length and even packets"
    even[150] = packet(150, 2500)
    assert always_decoded(even, shown, 6) == frozenset([*range(6), *range(142, 158), 198])
    early = [packet(i, 3000 if i in (0, 100, 130) else 100, i in (0, 100, 130)) for i in shown]
    expected = frozenset([*range(122, 138), 198])
    assert always_decoded(early, shown, 0) == expected, "a GOP shorter than the others was begun for a cut"


def test_long_video_is_divided_by_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "film.mp4", CLOSED)
    assert divide(path) == []
    monkeypatch.setattr(scanning, "PIECE_COST", 160 * 96 * 24 * 6)
    pieces = divide(path)
    assert [(piece.first, piece.end) for piece in pieces] == [(0, 1), (1, 3), (3, None)]
    assert sum(piece.cost for piece in pieces) == pytest.approx(160 * 96 * 24 * 25)


def test_last_frame_that_no_other_refers_to_counts(tmp_path: Path) -> None:
    """Some encoders omit every second frame for slow receivers; here a file is cut off after such a frame."""
    whole = write_film(tmp_path / "whole.mp4", {"x264-params": "bframes=0:ref=1:nal-hrd=none", "bf": "0"}, film(3))
    cut = str(tmp_path / "cut.mkv")
    with av.open(write_film(tmp_path / "b.mp4", CLOSED, film(3))) as source, av.open(cut, "w") as out:
        stream = source.streams.video[0]
        target = out.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        last = max(i for i, packet in enumerate(packets) if packet.pts and packet.size < 60)
        for packet in packets[: last + 1]:
            packet.stream = target
            out.mux(packet)
    for path in (whole, cut):
        assert scan_video(path).media.n_frames == len(list(read_frames(path, 16, 16)))


def test_skipping_does_not_change_what_is_found(video_folder: Path) -> None:
    """A scan of every frame with its loop filter has boundaries within two frames and signals within a few percent."""
    for name in (
        "talk_640x360.mp4",
        "talk_portrait_480x640.mp4",
        "nasa_320x180.mp4",
        "hydraulic_press_832x480.mp4",
        "hevc_10bit_200x200.mp4",
    ):
        path = str(video_folder / name)
        fast = scan_video(path)
        with open_video(path) as video:
            settings = ScanSettings()
            whole = scanning._finish(video, settings, scanning._measure(video, settings, 0, None, split=False))
        frame_pts = round(1 / (fast.media.fps or 25) / fast.media.time_base)
        assert [b.kind for b in fast.boundaries] == [b.kind for b in whole.boundaries], name
        for a, b in zip(fast.boundaries, whole.boundaries, strict=True):
            assert abs(a.start_pts - b.start_pts) <= 2 * frame_pts
            assert abs(a.end_pts - b.end_pts) <= 2 * frame_pts
        for one, other in zip(fast.shots, whole.shots, strict=True):
            assert one.signals.luma == pytest.approx(other.signals.luma, abs=0.01)
            assert one.signals.contrast == pytest.approx(other.signals.contrast, rel=0.03, abs=0.003)
            assert one.signals.motion == pytest.approx(other.signals.motion, rel=0.15, abs=0.005)
            assert one.signals.camera == other.signals.camera


def test_frames_in_which_segments_meet_count_once(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", CLOSED, sliding(24 * 11, 2.0))
    assert scan_video(path).media.n_frames == 24 * 11
    assert scan_video(str(encode(tmp_path / "n.mp4", numbered(24 * 6), options=CLOSED))).media.n_frames == 24 * 6
