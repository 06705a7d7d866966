"""Cutting clips: copied frames equal the source bit for bit, encoded clips have the same frames at the same times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.arrays import UInt8Array
from pipelines.export.clip_files import Cut, CutSettings, cut_image, cut_video
from pipelines.video.decode import DecodeError, open_video
from pipelines.video.media_info import MediaInfo
from tests.support import videos

FAST = CutSettings(preset="ultrafast")
GROUP = 10
X264 = {"g": str(GROUP), "bf": "3", "x264-params": "scenecut=0:keyint=10:min-keyint=10:b-adapt=0"}


def read(
    uri: Path | str, start_pts: int = -(1 << 60), end_pts: int = 1 << 60
) -> tuple[MediaInfo, list[tuple[Fraction, np.ndarray[Any, Any]]]]:
    """Return the frames of a span as (seconds from the first of them, stored values)."""
    found = []
    with open_video(str(uri)) as video:
        for frame in video.decoded_frames():
            if frame.pts >= end_pts:
                break
            if frame.pts >= start_pts:
                found.append((frame.pts, frame.frame.to_ndarray()))
        return video.info, [((pts - found[0][0]) * video.info.time_base, values) for pts, values in found]


def pts_of(uri: Path | str) -> list[int]:
    with open_video(str(uri)) as video:
        return [frame.pts for frame in video.decoded_frames()]


def check(uri: Path | str, start_pts: int, end_pts: int, cut: Cut, path: Path, min_psnr_db: float = 30.0) -> None:
    """Assert that a clip has the frames of the span at their times: bit for bit if copied, else to a PSNR in dB."""
    before, wanted = read(uri, start_pts, end_pts)
    after, found = read(path)
    assert [seconds for seconds, _ in found] == [seconds for seconds, _ in wanted]
    assert pts_of(path)[0] == 0
    assert (cut.n_frames, cut.width, cut.height) == (len(wanted), after.width, after.height)
    assert (after.width, after.height, after.rotation_deg, after.bit_depth) == (
        before.width,
        before.height,
        before.rotation_deg,
        before.bit_depth,
    )
    errors = [
        np.square(one.astype(float) - other.astype(float)).mean()
        for (_, one), (_, other) in zip(found, wanted, strict=True)
    ]
    if cut.mode == "copied":
        assert max(errors) == 0
    else:
        peak = 2**before.bit_depth - 1
        assert 10 * np.log10(peak**2 / max(float(np.mean(errors)), 1e-9)) > min_psnr_db


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 35 frames in closed groups of 10, with B-frames."""
    return videos.encode(tmp_path_factory.mktemp("grouped") / "grouped.mp4", videos.numbered(35), options=X264)


@pytest.fixture(scope="module")
def grouped_pts(grouped: Path) -> list[int]:
    return pts_of(grouped)


def span(pts: list[int], first: int, end: int) -> tuple[int, int]:
    """Return the start and end PTS of the span from frame `first` to before frame `end`."""
    return pts[first], pts[end] if end < len(pts) else pts[-1] + 101


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 34), length=st.integers(1, 35), early=st.integers(0, 100), late=st.integers(0, 100))
def test_any_span_gives_exactly_its_frames(
    tmp_path: Path, grouped: Path, grouped_pts: list[int], first: int, length: int, early: int, late: int
) -> None:
    end = min(first + length, 35)
    start_pts, end_pts = span(grouped_pts, first, end)
    # Spans may begin and end between frames.
    start_pts, end_pts = start_pts - early, end_pts - min(late, 100)
    path = tmp_path / "clip.mp4"
    cut = cut_video(str(grouped), start_pts, end_pts, path, FAST)
    check(grouped, start_pts, end_pts, cut, path)
    assert [videos.number_of(_rgb(path, k)) for k in (0, cut.n_frames - 1)] == [first, end - 1]
    assert cut.first_pts == grouped_pts[first]
    if first % GROUP:
        assert cut.mode == "encoded"
    elif end % GROUP == 0 or end == 35:
        assert cut.mode == "copied", "whole groups are always copied"


def _rgb(path: Path, number: int) -> UInt8Array:
    with open_video(str(path)) as video:
        for k, frame in enumerate(video.decoded_frames()):
            if k == number:
                return video.to_array(frame.frame, video.info.width, video.info.height)
    raise AssertionError(f"{path} has no frame {number}")


@pytest.mark.slow
@pytest.mark.parametrize("verify", [False, True])
def test_a_span_ending_between_dependent_frames_is_encoded(
    tmp_path: Path, grouped: Path, grouped_pts: list[int], verify: bool
) -> None:
    # Decoding order is 0 4 2 1 3 ...: frames 1 to 3 need frame 4, so of these only [0, 5) and [0, 1) can be copied.
    modes = {}
    for end in (1, 2, 3, 4, 5):
        start_pts, end_pts = span(grouped_pts, 0, end)
        cut = cut_video(
            str(grouped), start_pts, end_pts, tmp_path / "clip.mp4", FAST.model_copy(update={"verify": verify})
        )
        check(grouped, start_pts, end_pts, cut, tmp_path / "clip.mp4")
        modes[end] = cut.mode
    assert modes == {1: "copied", 2: "encoded", 3: "encoded", 4: "encoded", 5: "copied"}


@pytest.mark.slow
def test_a_group_with_references_to_the_one_before_is_encoded(tmp_path: Path) -> None:
    options = {**X264, "x264-params": "scenecut=0:keyint=10:min-keyint=10:open-gop=1:b-adapt=0"}
    source = videos.encode(tmp_path / "open.mp4", videos.sliding(35, 2.0, 96, 64), options=options)
    pts = pts_of(source)
    cuts = {}
    for first in (0, 9, 10, 11):
        cuts[first] = cut_video(str(source), *span(pts, first, 35), tmp_path / "clip.mp4", FAST)
        check(source, *span(pts, first, 35), cuts[first], tmp_path / "clip.mp4")
    assert cuts.pop(0).mode == "copied"
    assert {cut.mode for cut in cuts.values()} == {"encoded"}


def test_stream_copy_can_be_switched_off(tmp_path: Path, grouped: Path, grouped_pts: list[int]) -> None:
    cut = cut_video(
        str(grouped), *span(grouped_pts, 0, 35), tmp_path / "clip.mp4", FAST.model_copy(update={"stream_copy": False})
    )
    assert (cut.mode, cut.n_frames) == ("encoded", 35)


CONTAINERS = [
    ("a.mp4", "libx264", {"bf": "0"}),
    ("a.mkv", "libx264", X264),
    ("a.ts", "libx264", X264),
    ("a.mp4", "libx265", {"x265-params": "keyint=10:min-keyint=10:scenecut=0:log-level=0"}),
    ("a.mkv", "libsvtav1", {"preset": "12", "g": "10"}),
    ("a.webm", "libvpx-vp9", {"cpu-used": "8", "g": "10"}),
    ("a.mp4", "mpeg4", {"g": "10"}),
    ("a.avi", "mpeg4", {"g": "10", "bf": "2"}),
    ("a.webm", "libvpx", {"g": "10"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"), CONTAINERS, ids=[f"{codec}-{name}" for name, codec, _ in CONTAINERS]
)
def test_clips_of_all_containers_and_codecs(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    source = videos.encode(tmp_path / name, videos.sliding(24, 2.0, 96, 64), codec=codec, options=options)
    pts = pts_of(source)
    for first, end in ((0, 24), (0, 11), (7, 20)):
        cut = cut_video(str(source), *span(pts, first, end), tmp_path / "clip.mp4", FAST)
        check(source, *span(pts, first, end), cut, tmp_path / "clip.mp4")
        if (first, end) == (0, 24):
            assert cut.mode == ("encoded" if codec == "libvpx" or name.endswith("avi") else "copied")


def test_times_of_a_variable_frame_rate_are_kept(tmp_path: Path) -> None:
    pts = [0, 3, 4, 11, 12, 30, 31, 32, 60, 61, 90, 200]
    source = videos.encode(
        tmp_path / "vfr.mp4",
        videos.numbered(12),
        pts=pts,
        time_base=Fraction(1001, 30000),
        options={"g": "4", "bf": "2"},
    )
    found = pts_of(source)
    for first, end in ((0, 12), (4, 8), (5, 11), (3, 4)):
        cut = cut_video(str(source), *span(found, first, end), tmp_path / "clip.mp4", FAST)
        check(source, *span(found, first, end), cut, tmp_path / "clip.mp4")
        if cut.n_frames > 1:
            seconds = (pts[end - 1] - pts[first]) * 1001 / 30000
            assert cut.fps == pytest.approx((end - first - 1) / seconds)


@pytest.mark.parametrize("stream_copy", [True, False])
def test_rotation_aspect_and_colour_are_kept(tmp_path: Path, stream_copy: bool) -> None:
    source = videos.encode(
        tmp_path / "rotated.mov",
        videos.numbered(8),
        rotation_deg=90,
        aspect=Fraction(4, 3),
        color_range=2,
        colorspace=1,
        options={"bf": "0"},
    )
    cut = cut_video(
        str(source), 0, 1 << 40, tmp_path / "clip.mp4", FAST.model_copy(update={"stream_copy": stream_copy})
    )
    check(source, 0, 1 << 40, cut, tmp_path / "clip.mp4")
    assert cut.mode == ("copied" if stream_copy else "encoded")
    tags = []
    for path in (source, tmp_path / "clip.mp4"):
        with open_video(str(path)) as video:
            frame = next(video.decoded_frames()).frame
            tags.append(
                (frame.rotation, int(frame.color_range), int(frame.colorspace), video.info.width, video.info.height)
            )
    assert tags[0] == tags[1]
    assert tags[0][1:3] == (2, 1)


def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    source = videos.encode(tmp_path / "deep.mp4", videos.numbered(6), pixel_format="yuv420p10le", options={"g": "6"})
    cut = cut_video(str(source), *span(pts_of(source), 2, 6), tmp_path / "clip.mp4", FAST)
    check(source, *span(pts_of(source), 2, 6), cut, tmp_path / "clip.mp4")
    assert read(tmp_path / "clip.mp4")[0].pixel_format == "yuv420p10le"


def test_odd_sides_and_other_chroma_are_converted(tmp_path: Path) -> None:
    source = videos.encode(
        tmp_path / "odd.mp4", videos.numbered(4, 131, 67), pixel_format="yuv444p", options={"g": "4"}
    )
    cut = cut_video(str(source), *span(pts_of(source), 1, 4), tmp_path / "clip.mp4", FAST)
    info, found = read(tmp_path / "clip.mp4")
    assert (cut.mode, len(found), info.pixel_format, info.width, info.height) == ("encoded", 3, "yuv420p", 130, 66)


@pytest.mark.slow
def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    source = videos.encode(tmp_path / "a.mp4", videos.sliding(40, 3.0, 352, 288), options={"g": "40"})
    files = []
    for number in range(6):
        # Without `REPRODUCIBLE`, x264 on AVX-512 depended on earlier contents of memory.
        garbage = [np.full(50_000 * (k + number), number, np.uint8) for k in range(9)]
        cut_video(
            str(source),
            *span(pts_of(source), 3, 38),
            tmp_path / "clip.mp4",
            CutSettings(preset="veryfast", verify=False),
        )
        files.append((tmp_path / "clip.mp4").read_bytes())
        del garbage
    assert len(set(files)) == 1


def test_a_span_without_frames_fails(tmp_path: Path, grouped: Path, grouped_pts: list[int]) -> None:
    with pytest.raises(DecodeError, match="no frame between"):
        cut_video(str(grouped), grouped_pts[3] + 1, grouped_pts[4], tmp_path / "clip.mp4", FAST)


@pytest.mark.parametrize("stream_copy", [True, False])
def test_damaged_packets_fail_the_clip(
    tmp_path: Path, grouped: Path, grouped_pts: list[int], stream_copy: bool
) -> None:
    data = bytearray(grouped.read_bytes())
    with av.open(str(grouped)) as container:
        offsets = [packet.pos for packet in container.demux(video=0) if packet.size]
    # The length of the packet's first NAL unit.
    data[offsets[13] : offsets[13] + 4] = b"\x7f\xff\xff\xff"
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(DecodeError):
        cut_video(
            str(tmp_path / "bad.mp4"),
            grouped_pts[0],
            grouped_pts[-1] + 1,
            tmp_path / "clip.mp4",
            FAST.model_copy(update={"stream_copy": stream_copy}),
        )


def test_images_are_copied_or_written_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    copied = cut_image(str(tmp_path / "a.png"), tmp_path / "x.png")
    assert (copied.mode, copied.width, copied.height, copied.n_frames) == ("copied", 30, 20, 1)
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    encoded = cut_image(str(tmp_path / "a.bmp"), tmp_path / "y.png")
    assert encoded.mode == "encoded"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "y.png")), pixels)


REAL = [
    "av1_640x360.mkv",
    "bt709_full_range_720p.mp4",
    "hevc_10bit_200x200.mp4",
    "mpeg4_320x240.avi",
    "nasa_320x180.mp4",
    "rotated_90.mov",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REAL, "short_1s_340x256.mp4", "subtitled_portrait_362x640.mp4"])
def test_clips_of_footage(tmp_path: Path, video_folder: Path, name: str) -> None:
    source = video_folder / name
    pts = pts_of(source)[:160]
    n = len(pts)
    for first, end in ((0, n), (0, max(1, n // 2)), (n // 3, max(n // 3 + 1, 2 * n // 3))):
        start_pts, end_pts = span(pts, first, end)
        cut = cut_video(str(source), start_pts, end_pts, tmp_path / "clip.mp4", FAST)
        check(source, start_pts, end_pts, cut, tmp_path / "clip.mp4", 38)


def displayed(path: Path) -> UInt8Array:
    """Return the first frame of a video as displayed, RGB."""
    with open_video(str(path)) as video:
        frame = next(iter(video.decoded_frames())).frame
        return video.to_array(frame, video.info.width, video.info.height)


MATRICES = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0))
"""Upright, turned by 90, 180 and 270 degrees, mirrored, and turned and mirrored."""


@pytest.mark.parametrize("matrix", MATRICES)
def test_crop_is_of_the_frame_as_displayed(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    frames = videos.sliding(4, 2.0, 96, 64)
    source = videos.encode(tmp_path / "a.mp4", frames, options={"crf": "4"}, matrix=matrix)
    whole = displayed(source)
    height, width = whole.shape[:2]
    # Sides that are odd give a box of even ones inside.
    crop = (9, 14, width - 5, height - 10)
    cut = cut_video(str(source), 0, 1 << 40, tmp_path / "b.mp4", CutSettings(crf=4, preset="ultrafast"), crop)
    assert (cut.mode, cut.reason, cut.n_frames) == ("encoded", "bars are cut off", 4)
    found = displayed(tmp_path / "b.mp4")
    assert found.shape[:2] == (cut.height, cut.width) == (height - 24, width - 16)
    expected = whole[14 : height - 10, 10 : width - 6]
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < 4
    other = whole[10 : height - 14, 4 : width - 12]
    assert np.abs(found.astype(int) - other.astype(int)).mean() > 8


def test_crop_of_wide_pixels_keeps_their_shape(tmp_path: Path) -> None:
    source = videos.encode(tmp_path / "a.mp4", videos.sliding(4, 2.0, 96, 64), aspect=Fraction(2))
    cut = cut_video(str(source), 0, 1 << 40, tmp_path / "b.mp4", FAST, (0, 8, 192, 56))
    assert (cut.width, cut.height) == (192, 48)


def test_crop_of_the_whole_frame_is_copied(tmp_path: Path, grouped: Path) -> None:
    cut = cut_video(str(grouped), 0, 1 << 40, tmp_path / "clip.mp4", FAST, (0, 0, 128, 64))
    assert cut.mode == "copied"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_bars_of_an_image_are_cut_off(tmp_path: Path, suffix: str) -> None:
    pixels = videos.sliding(1, 1.0, 64, 48)[0]
    pixels[:7] = pixels[-6:] = 0
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", quality=95)
    cut = cut_image(str(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}", (0, 7, 64, 42))
    assert (cut.mode, cut.reason, cut.width, cut.height) == ("encoded", "bars are cut off", 64, 35)
    written = np.asarray(Image.open(tmp_path / f"b{suffix}").convert("RGB")).astype(int)
    assert np.abs(written - pixels[7:42]).mean() < 4
    whole = cut_image(str(tmp_path / f"a{suffix}"), tmp_path / f"c{suffix}", (0, 0, 64, 48))
    assert whole.mode == "copied"
