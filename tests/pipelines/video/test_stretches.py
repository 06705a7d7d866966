from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video import scan as scanning
from pipelines.video.decode import open_video, read_frames
from pipelines.video.gop_segments import (
    ANCHOR_S,
    Decoders,
    NotSplittableError,
    Stretches,
    decode,
    decode_windows,
    likely_cuts,
)
from pipelines.video.scan import ScanSettings, divide, join_pieces, scan_piece, scan_video
from tests.pipelines.video.test_scan import patches, tinted
from tests.support.videos import encode, numbered, sliding

CLOSED = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=60:min-keyint=60:scenecut=0"}
OPEN = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=60:min-keyint=60:scenecut=0:open-gop=1"}
PLAIN = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=60:min-keyint=60:scenecut=0:no-deblock=1:b-adapt=0"}
INTRA_REFRESH = {"preset": "veryfast", "x264-params": "keyint=60:intra-refresh=1"}


def film(seconds: int = 21) -> np.ndarray:
    """Shots of 2.5 to 4.5 s at 24 fps, none of which ends where a group of pictures does, and a dissolve."""
    lengths = [70, 83, 95, 61, 107, 88]
    colours = [(255, 80, 60), (60, 120, 255), (240, 240, 90), (90, 220, 120), (200, 90, 220), (250, 250, 250)]
    parts = [tinted(n, colour, seed=seed) for seed, (n, colour) in enumerate(zip(lengths, colours, strict=True))]
    alpha = np.linspace(0, 1, 14)[1:-1, None, None, None]
    mixed = ((1 - alpha) * parts[2][-12:] + alpha * parts[3][:12]).astype(np.uint8)
    return np.concatenate([*parts[:2], parts[2][:-12], mixed, parts[3][12:], *parts[4:]])[: seconds * 24]


@pytest.mark.parametrize("options", [CLOSED, OPEN, PLAIN])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pieces_join_to_the_scan_of_the_whole(tmp_path: Path, options: dict[str, str], suffix: str) -> None:
    path = str(encode(tmp_path / f"film.{suffix}", film(), time_base=Fraction(1, 24), options=options))
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert len(whole.boundaries) == 5
    for edges in ([0, 2, None], [0, 1, 2, 3, 4, None], [0, 3, None], [0, 2, 40, None]):
        parts = [scan_piece(path, settings, first or 0, end) for first, end in pairwise(edges)]
        assert join_pieces(path, settings, parts) == whole, edges


def test_a_dark_piece_has_the_bars_of_the_whole(tmp_path: Path) -> None:
    """Bars are agreed on over all shots, when the pieces are joined: the piece in the middle shows none of them."""
    day, night = film(12), np.zeros((6 * 24, 96, 160, 3), np.uint8)
    lamp = patches(1, 3)[0, 30:60, 50:90] // 2
    for number, picture in enumerate(night):
        picture[30:60, 30 + number // 3 : 70 + number // 3] = lamp
    boxed = np.pad(np.concatenate([day[:144], night, day[144:]]), ((0, 0), (16, 16), (0, 0), (0, 0)))
    path = str(encode(tmp_path / "film.mp4", boxed, time_base=Fraction(1, 24), options=CLOSED))
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert {shot.signals.crop for shot in whole.shots} == {(0, 16, 160, 112)}
    assert any(shot.signals.luma < 0.1 for shot in whole.shots)
    assert (
        join_pieces(
            path, settings, [scan_piece(path, settings, first, end) for first, end in ((0, 1), (1, 2), (2, None))]
        )
        == whole
    )


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_pieces_join_for_detectors_that_see_every_frame(tmp_path: Path, detector: Any) -> None:
    path = str(encode(tmp_path / "film.mp4", film(), time_base=Fraction(1, 24), options=OPEN))
    settings = ScanSettings(detector=detector)
    assert join_pieces(
        path, settings, [scan_piece(path, settings, 0, 2), scan_piece(path, settings, 2, None)]
    ) == scan_video(path, settings)


def test_every_frame_is_seen_or_counted(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "film.mp4", film(), time_base=Fraction(1, 24), options=CLOSED))
    every = [pts for pts, _ in read_frames(path, 16, 16)]
    with open_video(path) as video:
        decoders = Decoders(video)
        seen = [list(decode(decoders, stretch)) for stretch in Stretches(video)]
    for stretch, after in pairwise(seen):
        assert stretch[-1].picture.pts == after[0].picture.pts, "neighbours share the anchor between them"
        assert float((after[0].picture.pts - stretch[0].picture.pts) * Fraction(1, 24 * 512)) >= ANCHOR_S - 0.01
    pts = sorted({one.picture.pts for stretch in seen for one in stretch})
    assert set(pts) <= set(every)
    assert len(pts) < 0.8 * len(every), "frames nobody refers to are passed over"
    assert sum(one.passed_over for stretch in seen for one in stretch) + len(pts) == len(every)
    for stretch in seen:
        for before, one in pairwise(stretch):
            assert one.passed_over == sum(before.picture.pts < p < one.picture.pts for p in every)


def test_frames_passed_over_come_bit_for_bit_when_they_are_wanted(tmp_path: Path) -> None:
    """In a stream without a loop filter nothing is left out but frames, so what is decoded is what a full decode gives."""
    path = str(encode(tmp_path / "film.mp4", film(8), time_base=Fraction(1, 24), options=PLAIN))
    full = dict(read_frames(path, pixel_format="gray8"))
    every = sorted(full)
    windows = [(every[3], every[9]), (every[9], every[12]), (every[50], every[58]), (every[100], every[131])]
    with open_video(path) as video:
        packets = list(video.packets())
        found: dict[tuple[int, int], list[int]] = {}
        for window, picture in decode_windows(Decoders(video), packets, windows):
            found.setdefault(window, []).append(picture.pts)
            assert np.array_equal(
                video.to_array(picture.frame, video.info.width, video.info.height, "gray8"), full[picture.pts]
            )
    assert found == {window: [p for p in every if window[0] <= p <= window[1]] for window in windows}


def test_a_group_without_an_end_is_decoded_whole_and_with_its_loop_filter(tmp_path: Path) -> None:
    pictures = np.concatenate([patches(48, seed) for seed in range(8)])
    path = str(
        encode(
            tmp_path / "endless.mp4",
            pictures,
            time_base=Fraction(1, 24),
            options={"bf": "3", "x264-params": "keyint=infinite:scenecut=0"},
        )
    )
    full = dict(read_frames(path, 64, 40, "gray8"))
    with open_video(path) as video:
        decoders = Decoders(video)
        for stretch in Stretches(video):
            assert not stretch.thin
            for one in decode(decoders, stretch):
                assert one.passed_over == 0
                assert np.array_equal(video.to_array(one.picture.frame, 64, 40, "gray8"), full.pop(one.picture.pts))
    assert not full


def test_key_frames_that_do_not_stand_alone_are_no_anchors(tmp_path: Path) -> None:
    """With intra refresh a stream can be entered anywhere and is nowhere whole at once."""
    path = str(encode(tmp_path / "refresh.mp4", film(), time_base=Fraction(1, 24), options=INTRA_REFRESH))
    with pytest.raises(NotSplittableError, match="does not decode on its own"):
        scan_piece(path, ScanSettings(), 1, None)
    scan = scan_video(path)
    assert scan.media.n_frames == len(list(read_frames(path, 16, 16)))


@pytest.mark.parametrize("codec", ["mpeg4", "ffv1", "libx265"])
def test_other_codecs_have_stretches_too(tmp_path: Path, codec: str) -> None:
    path = str(encode(tmp_path / "film.mkv", film(11), codec=codec, time_base=Fraction(1, 24), options={"g": "48"}))
    settings = ScanSettings()
    whole = scan_video(path, settings)
    assert join_pieces(path, settings, [scan_piece(path, settings, 0, 1), scan_piece(path, settings, 1, None)]) == whole
    assert [boundary.kind for boundary in whole.boundaries] == ["cut", "cut", "dissolve"]


def test_packets_that_look_like_cuts() -> None:
    def packet(pts: int, size: int, key: bool = False) -> av.Packet:
        made = av.Packet(bytes(size))
        made.pts, made.is_keyframe = pts, key
        return made

    shown = list(range(199))
    even = [packet(i, 3000 if i % 66 == 0 else 400 if i % 4 == 0 else 80, i % 66 == 0) for i in shown]
    assert likely_cuts(even, shown, 6) == frozenset([*range(6), 198]), "groups of one length and even packets"
    even[150] = packet(150, 2500)
    assert likely_cuts(even, shown, 6) == frozenset([*range(6), *range(142, 158), 198])
    early = [packet(i, 3000 if i in (0, 100, 130) else 100, i in (0, 100, 130)) for i in shown]
    assert likely_cuts(early, shown, 0) == frozenset([*range(122, 138), 198]), (
        "a group that is shorter than the others was begun for a cut"
    )


def test_a_long_video_is_divided_by_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "film.mp4", film(), time_base=Fraction(1, 24), options=CLOSED))
    assert divide(path) == []
    monkeypatch.setattr(scanning, "PIECE_COST", 160 * 96 * 24 * 6)
    pieces = divide(path)
    assert [(piece.first, piece.end) for piece in pieces] == [(0, 1), (1, 3), (3, None)]
    assert sum(piece.cost for piece in pieces) == pytest.approx(160 * 96 * 24 * 25)


def test_a_last_frame_that_nobody_refers_to_counts(tmp_path: Path) -> None:
    """As from encoders that leave out every second frame for slow receivers; here a file that was cut off after such a frame."""
    whole = encode(
        tmp_path / "whole.mp4",
        film(3),
        time_base=Fraction(1, 24),
        options={"x264-params": "bframes=0:ref=1:nal-hrd=none", "bf": "0"},
    )
    cut = tmp_path / "cut.mkv"
    with (
        av.open(str(encode(tmp_path / "b.mp4", film(3), time_base=Fraction(1, 24), options=CLOSED))) as source,
        av.open(str(cut), "w") as out,
    ):
        stream = source.streams.video[0]
        target = out.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        last = max(i for i, packet in enumerate(packets) if packet.pts and packet.size < 60)
        for packet in packets[: last + 1]:
            packet.stream = target
            out.mux(packet)
    for path in (whole, cut):
        assert scan_video(str(path)).media.n_frames == len(list(read_frames(str(path), 16, 16)))


@pytest.mark.slow
def test_what_is_left_out_does_not_change_what_is_found(real_videos: Path) -> None:
    """Against every frame with its loop filter: the same boundaries to a frame or two, and signals within a few percent."""
    for name in (
        "talk_640x360.mp4",
        "talk_portrait_480x640.mp4",
        "nasa_320x180.mp4",
        "hydraulic_press_832x480.mp4",
        "hevc_10bit_200x200.mp4",
    ):
        path = str(real_videos / name)
        fast = scan_video(path)
        with open_video(path) as video:
            settings = ScanSettings()
            whole = scanning._finished(video, settings, scanning._measured(video, settings, 0, None, split=False))
        frame_pts = round(1 / (fast.media.fps or 25) / fast.media.time_base)
        assert [b.kind for b in fast.boundaries] == [b.kind for b in whole.boundaries], name
        for a, b in zip(fast.boundaries, whole.boundaries, strict=True):
            assert abs(a.start_pts - b.start_pts) <= 2 * frame_pts
            assert abs(a.end_pts - b.end_pts) <= 2 * frame_pts
        for a, b in zip(fast.shots, whole.shots, strict=True):
            assert a.signals.luma == pytest.approx(b.signals.luma, abs=0.01)
            assert a.signals.contrast == pytest.approx(b.signals.contrast, rel=0.03, abs=0.003)
            assert a.signals.motion == pytest.approx(b.signals.motion, rel=0.15, abs=0.005)
            assert a.signals.camera == b.signals.camera


def test_frames_in_which_stretches_meet_count_once(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "film.mp4", sliding(24 * 11, 2.0), time_base=Fraction(1, 24), options=CLOSED))
    assert scan_video(path).media.n_frames == 24 * 11
    assert scan_video(str(encode(tmp_path / "n.mp4", numbered(24 * 6), options=CLOSED))).media.n_frames == 24 * 6
