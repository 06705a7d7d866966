"""Scans of whole files: shots, signals, hashes and thumbnails of known videos, of images, and of real footage."""

from __future__ import annotations

import io
import json
import tracemalloc
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cluster.arrays import Pixels
from cluster.config import validate
from pipelines.video.decode import OPEN_LOG, DecodeError, read_frames
from pipelines.video.feature_builder import ANALYSIS_AREA
from pipelines.video.phash import hamming
from pipelines.video.scale import size_with_area
from pipelines.video.scan import ScanSettings, VideoScan, scan_image, scan_video
from pipelines.video.shots import Shot, spread
from tests.support.images import soft_patches, tinted
from tests.support.videos import LOSSLESS, encode, numbered, sliding

pytestmark = pytest.mark.slow

RED, BLUE, GREEN, YELLOW = (255, 60, 60), (60, 60, 255), (60, 255, 60), (240, 240, 90)

CUTS = [40, 71]
"""First frames of the second and third shot of `three_shots`."""


def three_shots() -> Pixels:
    """Draw shots of 40, 31 and 25 frames."""
    return np.concatenate([tinted(40, RED, seed=1), tinted(31, BLUE, seed=2), tinted(25, YELLOW, seed=3)])


def only_shot(scan: VideoScan) -> Shot:
    (shot,) = scan.shots
    return shot


def decoded_thumbnails(shot: Shot, n: int = 16) -> list[Image.Image]:
    thumbnails = spread(shot.thumbnails, n, shot.start_pts, shot.end_pts)
    return [Image.open(io.BytesIO(thumbnail.jpeg)) for thumbnail in thumbnails]


@pytest.mark.parametrize("detector", ["signature", "adaptive", "content"])
def test_cuts_are_found_in_one_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str) -> None:
    path = str(encode(tmp_path / "cuts.mp4", three_shots(), time_base=Fraction(1, 24), options={"bf": "3"}))
    pts = [p for p, _ in read_frames(path, 32, 32)]
    monkeypatch.setenv(OPEN_LOG, str(tmp_path / "opens.txt"))
    scan = scan_video(path, validate(ScanSettings, {"detector": detector}))
    assert (tmp_path / "opens.txt").read_text().splitlines() == [path]
    assert [shot.start_pts for shot in scan.shots] == [pts[0], *(pts[cut] for cut in CUTS)]
    assert [shot.n_frames for shot in scan.shots] == [40, 31, 25]
    assert scan.media.n_frames == 96
    assert scan.media.source_duration_s == pytest.approx(4.0)
    assert all(a.end_pts == b.start_pts for a, b in pairwise(scan.shots))


def test_cuts_of_a_variable_frame_rate_are_exact_pts(tmp_path: Path) -> None:
    frames = three_shots()
    pts = (np.cumsum(np.random.default_rng(0).integers(10, 120, len(frames))) - 10).tolist()
    path = str(encode(tmp_path / "vfr.mkv", frames, pts=pts, time_base=Fraction(1, 1000)))
    scan = scan_video(path)
    assert [shot.start_pts for shot in scan.shots] == [pts[0], *(pts[cut] for cut in CUTS)]
    assert scan.shots[-1].end_pts > pts[-1]


def test_shots_shorter_than_min_shot_s_are_joined(tmp_path: Path) -> None:
    frames = np.concatenate([tinted(30, RED, seed=1), tinted(5, BLUE, seed=2), tinted(30, GREEN, seed=3)])
    path = str(encode(tmp_path / "short.mp4", frames, time_base=Fraction(1, 30)))
    assert len(scan_video(path, ScanSettings(min_shot_s=0.0)).shots) == 3
    joined = scan_video(path, ScanSettings(min_shot_s=0.5))
    assert sorted(shot.n_frames for shot in joined.shots) == [30, 35]
    by_content = scan_video(path, ScanSettings(min_shot_s=0.5, detector="content"))
    assert [shot.n_frames for shot in by_content.shots] == [30, 35]


def test_threshold_replaces_the_default(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "cuts.mp4", three_shots(), time_base=Fraction(1, 24)))
    assert len(scan_video(path, ScanSettings(detector="content", threshold=200.0)).shots) == 1


def test_luma_and_contrast_of_known_images_in_both_ranges(tmp_path: Path) -> None:
    half = np.zeros((96, 160, 3), np.uint8)
    half[:, 80:] = 255
    for color_range in (1, 2):
        path = encode(
            tmp_path / f"half{color_range}.mp4", [half] * 10, options=LOSSLESS, color_range=color_range, colorspace=1
        )
        signals = only_shot(scan_video(str(path))).signals
        assert signals.luma == pytest.approx(0.5, abs=0.01)
        assert signals.contrast == pytest.approx(0.5, abs=0.01)
        assert (signals.motion, signals.frozen_share) == (0.0, 1.0)
    black = only_shot(scan_video(str(encode(tmp_path / "black.mp4", [half * 0] * 10, options=LOSSLESS)))).signals
    assert (black.luma, black.contrast, black.sharpness, black.motion) == pytest.approx((0, 0, 0, 0), abs=0.003)


def test_ten_bits_measure_as_eight(tmp_path: Path) -> None:
    frames = np.where(sliding(12, 2.0) > 128, 220, 30).astype(np.uint8)
    eight = only_shot(scan_video(str(encode(tmp_path / "8.mkv", frames, codec="ffv1"))))
    ten = only_shot(scan_video(str(encode(tmp_path / "10.mkv", frames, codec="ffv1", pixel_format="yuv420p10le"))))
    for signal in ("luma", "contrast", "sharpness", "motion"):
        assert getattr(ten.signals, signal) == pytest.approx(getattr(eight.signals, signal), rel=0.03)


@pytest.mark.parametrize(("width", "height", "fps"), [(256, 144, 12), (512, 288, 24), (854, 480, 30), (320, 180, 60)])
def test_motion_compares_across_sizes_and_frame_rates(tmp_path: Path, width: int, height: int, fps: int) -> None:
    frames = sliding(fps, 0.2 * width / fps, width, height)
    options = {"preset": "ultrafast", "crf": "18"}
    shot = only_shot(scan_video(str(encode(tmp_path / "pan.mp4", frames, time_base=Fraction(1, fps), options=options))))
    assert shot.signals.motion == pytest.approx(0.2, rel=0.15)
    assert shot.signals.frozen_share == 0.0


def test_cut_is_no_motion(tmp_path: Path) -> None:
    slides = [np.repeat(tinted(1, colour, seed=seed), 24, axis=0) for seed, colour in enumerate([RED, BLUE])]
    path = encode(tmp_path / "slides.mp4", np.concatenate(slides), time_base=Fraction(1, 24), options=LOSSLESS)
    scan = scan_video(str(path))
    assert [(shot.signals.motion, shot.signals.frozen_share) for shot in scan.shots] == [(0.0, 1.0)] * 2


def test_thumbnails_are_spread_over_the_shot(tmp_path: Path) -> None:
    """A white bar moves from left to right, so a thumbnail shows when it was taken."""
    n = 200
    frames = (sliding(1, 0, 160, 96) // 2).repeat(n, axis=0)
    for k in range(n):
        frames[k, :, round(k * 152 / n) : round(k * 152 / n) + 8] = 255
    path = str(encode(tmp_path / "bar.mp4", frames, time_base=Fraction(1, 25), options=LOSSLESS))
    assert only_shot(scan_video(path, ScanSettings(thumbnail_px=0))).thumbnails == ()
    shot = only_shot(scan_video(path, ScanSettings(thumbnail_px=80)))
    for count in (0, 1, 3, 8):
        images = decoded_thumbnails(shot, count)
        assert [(image.format, image.size) for image in images] == [("JPEG", (80, 48))] * count
        times = [np.asarray(image).mean(axis=(0, 2)).argmax() / 78 for image in images]
        expected = [(i + 0.5) / count for i in range(count)]
        assert times == pytest.approx(expected, abs=0.5 / 8 + 0.02), "further than half a second from its time"


def test_every_shot_has_thumbnails_of_its_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "cuts.mp4", three_shots(), time_base=Fraction(1, 24), options={"crf": "10"})
    strongest = [
        [int(np.asarray(image).mean(axis=(0, 1)).argmax()) for image in decoded_thumbnails(shot)]
        for shot in scan_video(str(path)).shots
    ]
    assert [{*colours} for colours in strongest[:2]] == [{0}, {2}]
    assert all(strongest)


def test_hashes_cover_the_shot_and_survive_recompression(tmp_path: Path) -> None:
    frames = np.concatenate([soft_patches(n, seed) for seed, n in enumerate((40, 31, 25))])
    small = np.stack([np.asarray(Image.fromarray(frame).resize((112, 68), Image.Resampling.BOX)) for frame in frames])
    fine_path = encode(tmp_path / "fine.mp4", frames, time_base=Fraction(1, 24), options={"crf": "12"})
    rough_path = encode(tmp_path / "rough.mp4", small, time_base=Fraction(1, 24), options={"crf": "35"})
    fine, rough = scan_video(str(fine_path)), scan_video(str(rough_path))
    pts = [p for p, _ in read_frames(str(fine_path), 32, 32)]
    # One per quarter of a second from the first frame, which is every sixth frame.
    assert [item.pts for shot in fine.shots for item in shot.hashes] == pts[::6]
    assert [len(shot.hashes) for shot in fine.shots] == [7, 5, 4]
    assert [shot.start_pts for shot in fine.shots] == [pts[0], *(pts[cut] for cut in CUTS)]
    for a, b in zip(fine.shots, rough.shots, strict=True):
        assert np.mean([hamming(x.phash, y.phash) for x, y in zip(a.hashes, b.hashes, strict=True)]) <= 6
    assert min(hamming(x.phash, y.phash) for x in fine.shots[0].hashes for y in fine.shots[1].hashes) >= 10


def test_memory_grows_by_at_most_3_kb_per_frame(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        path = str(encode(tmp_path / f"{n}.mp4", tinted(n, (200, 220, 240)), options={"preset": "ultrafast"}))
        scan_video(path)
        tracemalloc.start()
        scan_video(path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(1500) - peak(700) < 800 * 3072


def test_scans_are_deterministic(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "cuts.mp4", three_shots(), time_base=Fraction(1, 24)))
    assert scan_video(path) == scan_video(path)


def test_video_of_one_frame(tmp_path: Path) -> None:
    shot = only_shot(scan_video(str(encode(tmp_path / "one.mp4", numbered(1)))))
    assert (shot.n_frames, shot.signals.motion, shot.signals.frozen_share) == (1, 0.0, 0.0)
    assert (len(shot.hashes), len(shot.thumbnails)) == (1, 1)
    assert shot.end_pts > shot.start_pts


def test_rotation_does_not_change_hashes_or_signals(tmp_path: Path) -> None:
    upright = sliding(10, 3.0, 144, 256)
    plain = only_shot(scan_video(str(encode(tmp_path / "plain.mkv", upright, codec="ffv1"))))
    sideways = np.rot90(upright, 1, axes=(1, 2))
    rotated_path = encode(tmp_path / "rotated.mp4", sideways, options=LOSSLESS, rotation_deg=-90)
    rotated = only_shot(scan_video(str(rotated_path)))
    assert max(hamming(a.phash, b.phash) for a, b in zip(plain.hashes, rotated.hashes, strict=True)) <= 1
    assert rotated.signals.motion == pytest.approx(plain.signals.motion, rel=0.02)
    assert decoded_thumbnails(rotated)[0].size == (90, 160)


@pytest.mark.parametrize("size", [(144, 256), (2160, 3840), (640, 362), (64, 64), (20, 2000), (480, 854)])
def test_analysis_image_has_one_area_and_keeps_the_aspect(size: tuple[int, int]) -> None:
    width, height = size_with_area(*size, ANALYSIS_AREA)
    assert height % 8 == width % 8 == 0
    assert min(height, width) >= 32
    if max(size) < 10 * min(size):
        assert height * width == pytest.approx(ANALYSIS_AREA, rel=0.1)
        assert height / width == pytest.approx(size[0] / size[1], rel=0.1)


def test_frames_before_an_edit_list_are_not_scanned(tmp_path: Path) -> None:
    source = encode(
        tmp_path / "source.mp4", sliding(96, 2.0), time_base=Fraction(1, 24), options={"bf": "3", "g": "48"}
    )
    path = str(tmp_path / "edited.mp4")
    options = {"avoid_negative_ts": "disabled", "movflags": "+negative_cts_offsets", "use_editlist": "1"}
    with av.open(str(source)) as whole, av.open(path, "w", options=options) as out:
        stream = whole.streams.video[0]
        target = out.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = (packet.pts or 0) - 5120, (packet.dts or 0) - 5120, target
                out.mux(packet)
    shown = [pts for pts, _ in read_frames(path, 16, 16)]
    assert len(shown) == 86
    scan = scan_video(path)
    assert (scan.media.n_frames, scan.shots[0].start_pts) == (86, shown[0])


def test_stitch_joins_shots_of_the_same_image(tmp_path: Path) -> None:
    """A cut to another image remains; a jump within the same image is removed."""
    still, other = (
        np.repeat(tinted(1, colour, seed=seed), 30, axis=0) for seed, colour in ((1, (255, 200, 60)), (2, BLUE))
    )
    brighter = np.clip(still.astype(int) + 30, 0, 255).astype(np.uint8)
    path = str(encode(tmp_path / "jump.mp4", np.concatenate([still, brighter, other]), time_base=Fraction(1, 24)))
    plain = scan_video(path, ScanSettings(detector="content", threshold=5.0))
    assert [shot.n_frames for shot in plain.shots] == [30, 30, 30]
    stitched = scan_video(path, ScanSettings(detector="content", threshold=5.0, stitch=35.0))
    assert [shot.n_frames for shot in stitched.shots] == [60, 30]


def test_hdr_interlacing_and_bit_depth_are_reported(tmp_path: Path) -> None:
    frames = numbered(5)
    plain = scan_video(str(encode(tmp_path / "plain.mp4", frames))).media
    assert (plain.hdr, plain.interlaced, plain.bit_depth) == (None, False, 8)
    options = {"x265-params": "transfer=16:colorprim=9:colormatrix=9:log-level=error"}
    pq_path = encode(tmp_path / "pq.mp4", frames, codec="libx265", pixel_format="yuv420p10le", options=options)
    pq = scan_video(str(pq_path)).media
    assert (pq.hdr, pq.bit_depth) == ("pq", 10)
    options = {"flags": "+ilme+ildct", "x264-params": "interlaced=1"}
    assert scan_video(str(encode(tmp_path / "fields.mp4", frames, options=options))).media.interlaced


def test_broken_files_raise(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(DecodeError, match=r"a\.mp4"):
        scan_video(str(tmp_path / "a.mp4"))


def test_image_is_a_shot_of_one_frame(tmp_path: Path) -> None:
    image = np.where(sliding(1, 0, 320, 180)[0] > 128, 220, 30).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    scan = scan_image(str(tmp_path / "a.png"))
    shot, media = only_shot(scan), scan.media
    assert (shot.start_pts, shot.end_pts, shot.n_frames) == (0, 1, 1)
    assert (shot.signals.motion, shot.signals.frozen_share) == (None, None)
    assert (media.width, media.height, media.codec, media.fps) == (320, 180, "png", None)
    assert media.source_duration_s == 0.0
    assert shot.signals.luma == pytest.approx(image.mean() / 255, abs=0.01)
    video = only_shot(scan_video(str(encode(tmp_path / "a.mp4", [image] * 3, options=LOSSLESS))))
    assert hamming(shot.hashes[0].phash, video.hashes[0].phash) <= 2
    assert shot.signals.sharpness == pytest.approx(video.signals.sharpness, rel=0.1)
    names = {"codec", "width", "height", "rotation_deg", "fps", "time_base_num", "pixel_format", "source_duration_s"}
    assert {*asdict(media)} >= names


@pytest.mark.parametrize(
    "settings",
    [
        {"detector": "magic"},
        {"threshold": 0},
        {"thumbnail_px": -1},
        {"thumbnail_px": 4000},
        {"min_shot_s": "0.3"},
        {"detecter": "content"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        validate(ScanSettings, settings)


def test_footage_scans_or_fails_as_it_should(video_folder: Path) -> None:
    scans: dict[str, VideoScan] = {}
    for path in sorted(video_folder.glob("*.*")):
        if path.suffix == ".md":
            continue
        if path.stem == "corrupted":
            with pytest.raises(DecodeError, match=r"corrupted\.mp4: InvalidDataError"):
                scan_video(str(path))
            continue
        scans[path.stem] = scan = scan_video(str(path))
        pts = [p for p, _ in read_frames(str(path), 16, 16)]
        assert scan.media.n_frames == len(pts)
        mixed = sum(boundary.start_pts <= p < boundary.end_pts for boundary in scan.boundaries for p in pts)
        assert sum(shot.n_frames for shot in scan.shots) == len(pts) - mixed
        for shot in scan.shots:
            assert 0 <= shot.signals.luma <= 1
            assert 0 <= shot.signals.contrast <= 0.5
            assert 0 <= (shot.signals.motion or 0) < 2
            seconds = (shot.end_pts - shot.start_pts) * scan.media.time_base
            assert 1 <= len(shot.thumbnails) <= 1 + seconds / Fraction("0.3")
    assert len(scans) == 16
    # The times of the cuts were read off the frames.
    seconds = {
        name: [round(float(shot.start_pts * scan.media.time_base), 2) for shot in scan.shots[1:]]
        for name, scan in scans.items()
    }
    assert seconds["talk_640x360"] == [6.0, 9.88]
    assert seconds["talk_portrait_480x640"] == seconds["hydraulic_press_832x480"] == seconds["motorcycle_2160p"] == []
    pristine, distorted, other = (
        scans[name].shots[0].hashes for name in ("carphone_pristine", "carphone_distorted", "talk_640x360")
    )
    assert np.mean([hamming(a.phash, b.phash) for a, b in zip(pristine, distorted, strict=True)]) <= 6
    assert min(hamming(a.phash, b.phash) for a in pristine for b in other) >= 12
    assert (scans["rotated_90"].media.width, scans["rotated_90"].media.height) == (320, 568)


def test_trailer_is_cut_as_labelled(video_folder: Path) -> None:
    """Every hard cut is on its frame and every fade at its span; the whip pan and the close fly-bys are not cut.

    The labels were made from contact sheets.
    """
    labels = json.loads(Path(__file__).with_name("sintel_labels.json").read_text())
    scan = scan_video(str(video_folder / labels["file"]))
    found = [
        (b.kind, *(round(float(pts * scan.media.time_base * labels["fps"])) for pts in (b.start_pts, b.end_pts)))
        for b in scan.boundaries
    ]
    expected = [(label["kind"], label["start_frame"], label["end_frame"]) for label in labels["boundaries"]]
    expected_cuts = {start for kind, start, _ in expected if kind == "cut"}
    assert {start for kind, start, _ in found if kind == "cut"} == expected_cuts
    gradual = [(start, end) for kind, start, end in found if kind != "cut"]
    for kind, start, end in expected:
        if kind != "cut":
            assert any(min(end, b) - max(start, a) > 0.7 * (end - start) for a, b in gradual), (start, end)
    # The file begins inside a fade in and ends inside a fade out; nothing else is found.
    assert len(gradual) - sum(kind != "cut" for kind, _, _ in expected) <= 2
    assert scan.shots[1].crop == (0, 58, 854, 422)
