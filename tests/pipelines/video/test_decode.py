from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import storage
from pipelines.video.decode import OPEN_LOG, DecodeError, open_video, probe, read_frames
from pipelines.video.spans import FrameGrid, read_span, target_pts
from tests.support.videos import encode, number_of, numbered

LOSSLESS = {"crf": "0", "preset": "ultrafast"}
B_FRAMES = {"crf": "10", "preset": "medium", "bf": "3", "g": "12"}


def numbers(path: Path) -> list[int]:
    return [number_of(frame) for _, frame in read_frames(str(path))]


def expected_pts(pts: list[int], start: int, end: int, fps: float, n: int, time_base: Fraction) -> list[int]:
    """What a span must show, said as plainly as possible: the last frame at or before each moment, rounded half up to a tick."""
    shown = []
    for k in range(n):
        exact = start + k / (Fraction(fps).limit_denominator(1001) * time_base)
        moment = min(int(exact + Fraction(1, 2)), end - 1)
        shown.append(max(p for p in pts if p <= moment))
    return shown


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_b_frames_come_in_presentation_order_with_their_pts(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"b.{suffix}", numbered(40), options=B_FRAMES)
    with av.open(str(path)) as container:
        order = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert order != sorted(order), "the file has no B-frames to test with"
    pts = [p for p, _ in read_frames(str(path))]
    time_base = probe(str(path)).time_base
    assert [float((p - pts[0]) * time_base) for p in pts] == pytest.approx([k / 30 for k in range(40)], abs=6e-4)
    assert numbers(path) == list(range(40))


def test_variable_frame_rate_keeps_every_pts(tmp_path: Path) -> None:
    pts = np.cumsum(np.random.default_rng(1).integers(1, 200, 50)).tolist()
    path = encode(tmp_path / "vfr.mkv", numbered(50), pts=pts, time_base=Fraction(1, 1000), options=B_FRAMES)
    assert probe(str(path)).time_base == Fraction(1, 1000)
    assert [p for p, _ in read_frames(str(path))] == pts


@pytest.mark.parametrize(
    "options", [B_FRAMES, {**B_FRAMES, "x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10"}]
)
def test_any_frame_can_be_sought_bit_for_bit(tmp_path: Path, options: dict[str, str]) -> None:
    path = str(encode(tmp_path / "gop.mp4", numbered(45), options=options))
    sequential = list(read_frames(path, 64, 32))
    for start, picture in sequential:
        span = read_span(path, start, start + 1, FrameGrid(fps=1, frames=1, width=64, height=32))
        assert span.pts == (start,)
        assert np.array_equal(span.frames[0], picture), f"the frame at PTS {start} depends on how it was reached"


def test_a_span_decodes_no_more_than_its_group_of_pictures(tmp_path: Path) -> None:
    options = {"bf": "0", "x264-params": "keyint=12:min-keyint=12:scenecut=0"}
    path = str(encode(tmp_path / "long.mp4", numbered(200), options=options))
    pts = [p for p, _ in read_frames(path)]
    decoded: list[int] = []
    with open_video(path) as video:
        assert video.seek(pts[150])
        for picture in video.decoded_frames():
            decoded.append(picture.pts)
            if picture.pts >= pts[150]:
                break
    assert decoded[0] == pts[144]
    assert len(decoded) == 7


@given(data=st.data(), n=st.integers(1, 12), fps=st.sampled_from([1.0, 4.0, 8.0, 23.976, 24000 / 1001, 30.0]))
def test_spans_show_the_frame_not_later_than_each_moment(
    data: st.DataObject, n: int, fps: float, vfr: tuple[str, list[int], Fraction]
) -> None:
    path, pts, time_base = vfr
    start = data.draw(st.sampled_from(pts[:-2]))
    needed = (n - 1) / (Fraction(fps).limit_denominator(1001) * time_base)
    end = start + max(1, int(needed) + data.draw(st.integers(1, 300)))
    span = read_span(path, start, end, FrameGrid(fps=fps, frames=n, width=64, height=32))
    assert list(span.pts) == expected_pts(pts, start, end, fps, n, time_base)
    assert [pts[number_of(frame)] for frame in span.frames] == list(span.pts)


@pytest.fixture(scope="session")
def vfr(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[int], Fraction]:
    pts = np.cumsum(np.random.default_rng(2).integers(5, 90, 80)).tolist()
    path = tmp_path_factory.mktemp("vfr") / "vfr.mkv"
    encode(path, numbered(80), pts=pts, time_base=Fraction(1, 1000), options=B_FRAMES)
    return str(path), pts, Fraction(1, 1000)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_a_coarse_time_base_neither_doubles_nor_skips(tmp_path: Path, rate: int) -> None:
    """Matroska rounds PTS to milliseconds; sampled at the stream's own rate every frame must still come once."""
    path = str(encode(tmp_path / "ms.mkv", numbered(40), time_base=Fraction(1, rate), options=LOSSLESS))
    assert probe(path).time_base == Fraction(1, 1000)
    span = read_span(path, 0, 10_000, FrameGrid(fps=rate, frames=40, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == list(range(40))
    half = read_span(path, 0, 10_000, FrameGrid(fps=rate / 2, frames=20, width=128, height=64))
    assert [number_of(frame) for frame in half.frames] == list(range(0, 40, 2))


def test_the_end_is_exclusive_and_a_short_span_is_refused(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "end.mkv", numbered(30), time_base=Fraction(1, 10), options=LOSSLESS))
    span = read_span(path, 500, 1000, FrameGrid(fps=10, frames=6, width=64, height=32))
    assert span.pts == (500, 600, 700, 800, 900, 900), "the frame at 1000 lies past the end"
    with pytest.raises(ValueError, match=r"7 frames at 10 fps need 0.6 s, but the span has 0.5 s"):
        read_span(path, 500, 1000, FrameGrid(fps=10, frames=7, width=64, height=32))
    with pytest.raises(ValueError, match="the span has 0 s"):
        read_span(path, 500, 500, FrameGrid(fps=10, frames=1, width=64, height=32))
    with pytest.raises(ValueError, match="must be positive"):
        read_span(path, 0, 500, FrameGrid(fps=0, frames=1, width=64, height=32))


def test_a_span_past_the_end_of_the_file_is_no_picture(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "end.mkv", numbered(10), time_base=Fraction(1, 10), options=LOSSLESS))
    with pytest.raises(DecodeError, match=r"end\.mkv"):
        read_span(path, 60_000, 61_000, FrameGrid(fps=10, frames=3, width=64, height=32))


@given(
    start=st.integers(-(10**6), 10**9),
    fps=st.floats(0.5, 120),
    n=st.integers(1, 64),
    den=st.sampled_from([1000, 12288, 90000, 1000000]),
)
def test_moments_rise_and_stay_inside_the_span(start: int, fps: float, n: int, den: int) -> None:
    length = int((n - 1) / fps * den) + 2 * den
    targets = target_pts(start, start + length, fps, n, Fraction(1, den))
    assert targets[0] == start
    assert all(a <= b < start + length for a, b in zip(targets, targets[1:] + targets[-1:], strict=True))
    exact = start + (n - 1) / Fraction(fps).limit_denominator(1001) * den
    assert abs(targets[-1] - exact) <= Fraction(1, 2)


@pytest.mark.parametrize("rotation_deg", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation_deg: int) -> None:
    rng = np.random.default_rng(3)
    picture = np.kron(rng.integers(0, 256, (4, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    plain = str(encode(tmp_path / "plain.mp4", [picture] * 3, options=LOSSLESS))
    turned = str(encode(tmp_path / "turned.mp4", [picture] * 3, options=LOSSLESS, rotation_deg=rotation_deg))
    info = probe(turned)
    assert info.rotation_deg % 360 == rotation_deg % 360
    assert (info.coded_width, info.coded_height) == (128, 64)
    assert (info.width, info.height) == ((64, 128) if rotation_deg % 180 else (128, 64))
    upright = np.rot90(next(read_frames(plain))[1], rotation_deg // 90)
    assert np.array_equal(next(read_frames(turned))[1], upright)
    span = read_span(turned, 0, 10**6, FrameGrid(fps=1, frames=1, width=info.width, height=info.height))
    assert np.array_equal(span.frames[0], upright)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32] = 255
    path = str(encode(tmp_path / "wide.mp4", [picture] * 2, options=LOSSLESS, aspect=Fraction(2, 1)))
    info = probe(path)
    assert (info.width, info.height, info.coded_width) == (128, 64, 64)
    span = read_span(path, 0, 10**6, FrameGrid(fps=1, frames=1, width=64, height=64))
    assert span.crop == (32, 0, 96, 64)
    assert span.frames[0, :, :30].min() > 240
    assert span.frames[0, :, 34:].max() < 15


@pytest.mark.parametrize(
    ("pixel_format", "codec"),
    [("yuv420p10le", "libx265"), ("yuv420p", "libx264"), ("yuv444p10le", "ffv1"), ("rgb24", "libx264rgb")],
)
@pytest.mark.parametrize("color_range", [1, 2])
def test_depth_and_range_do_not_change_the_picture(
    tmp_path: Path, pixel_format: str, codec: str, color_range: int
) -> None:
    if pixel_format == "rgb24" and color_range == 1:
        pytest.skip("RGB has the full range")
    levels = np.linspace(0, 255, 8).astype(np.uint8)
    picture = np.repeat(np.repeat(np.repeat(levels[None, :, None], 16, axis=1), 64, axis=0), 3, axis=2)
    options = (
        {"x265-params": "lossless=1:log-level=none:pools=1:frame-threads=1"}
        if codec == "libx265"
        else LOSSLESS
        if "264" in codec
        else {}
    )
    colours = {} if pixel_format == "rgb24" else {"color_range": color_range, "colorspace": 1}
    path = encode(
        tmp_path / "levels.mkv", [picture] * 2, codec=codec, pixel_format=pixel_format, options=options, **colours
    )
    decoded = next(read_frames(str(path)))[1]
    assert np.abs(decoded.astype(int) - picture).max() <= 2
    assert probe(str(path)).color_range == ("full" if color_range == 2 else "limited")


@pytest.mark.parametrize(("height", "matrix"), [(720, 1), (480, 5)])
def test_untagged_video_is_bt709_from_720_lines_on(tmp_path: Path, height: int, matrix: int) -> None:
    picture = np.zeros((height, 64, 3), np.uint8)
    picture[:] = (200, 60, 30)
    path = encode(tmp_path / "untagged.mp4", [picture] * 2, options=LOSSLESS, colorspace=matrix, tag=False)
    assert np.abs(next(read_frames(str(path)))[1].astype(int) - picture).max() <= 3


def test_shrinking_leaves_no_aliases(tmp_path: Path) -> None:
    picture = np.zeros((128, 256, 3), np.uint8)
    picture[:, ::2] = 255
    path = str(encode(tmp_path / "stripes.mp4", [picture] * 2, options=LOSSLESS))
    for size in ((32, 16), (50, 30)):
        small = next(read_frames(path, *size))[1].astype(int)
        # A window of 5.12 columns holds between 2.12 and 3 white ones: at most 12% more or less than half.
        assert np.abs(small - 127).max() <= 0.12 * 255, "one-pixel stripes must average to grey"


def test_crops(tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64], picture[:32, 64:], picture[32:, :64], picture[32:, 64:] = (
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
        (250, 250, 250),
    )
    path = str(encode(tmp_path / "quarters.mp4", [picture] * 2, options=LOSSLESS))
    centred = read_span(path, 0, 10**6, FrameGrid(fps=1, frames=1, width=32, height=32))
    assert centred.crop == (32, 0, 96, 64)
    assert centred.frames.shape == (1, 32, 32, 3)
    quarter = read_span(path, 0, 10**6, FrameGrid(fps=1, frames=1, width=40, height=20), crop=(64, 0, 128, 32))
    assert quarter.crop == (64, 0, 128, 32)
    assert np.abs(quarter.frames[0, 2:-2, 2:-2].astype(int) - (0, 250, 0)).max() < 12
    with pytest.raises(ValueError, match=r"crop \(0, 0, 129, 64\) is not inside the image of 128x64"):
        read_span(path, 0, 10**6, FrameGrid(fps=1, frames=1, width=32, height=32), crop=(0, 0, 129, 64))


def test_negative_pts(tmp_path: Path) -> None:
    pts = list(range(-300, 700, 100))
    path = str(
        encode(
            tmp_path / "negative.ts",
            numbered(10),
            pts=pts,
            time_base=Fraction(1, 1000),
            options={"bf": "0"},
            container_options={"avoid_negative_ts": "disabled"},
        )
    )
    found = [p for p, _ in read_frames(path)]
    assert found == [90 * p for p in pts]
    span = read_span(path, found[2], found[6], FrameGrid(fps=10, frames=4, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == [2, 3, 4, 5]


def test_streams_without_pts_follow_their_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", numbered(20), options=B_FRAMES)
    assert numbers(path) == list(range(20))
    pts = [p for p, _ in read_frames(str(path))]
    assert len(set(np.diff(pts))) == 1
    span = read_span(
        str(path),
        pts[7],
        pts[11],
        FrameGrid(fps=1 / float(probe(str(path)).time_base * (pts[1] - pts[0])), frames=4, width=128, height=64),
    )
    assert [number_of(frame) for frame in span.frames] == [7, 8, 9, 10]


def test_packed_b_frames_in_avi_lose_no_frame(real_videos: Path) -> None:
    path = str(real_videos / "mpeg4_320x240.avi")
    pts = [p for p, _ in read_frames(path, 32, 24)]
    assert pts == list(range(pts[0], pts[0] + 164))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8])
def test_truncated_files_fail(tmp_path: Path, share: float) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (90, 64, 64, 3)).astype(np.uint8)
    path = encode(
        tmp_path / "whole.mp4",
        noise,
        container_options={"movflags": "faststart"},
        options={"crf": "30", "preset": "ultrafast"},
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DecodeError, match=r"cut\.mp4: (truncated: frames end at|\w+Error: )"):
        list(read_frames(str(cut)))


def test_a_stream_that_just_ends_early_is_named_truncated(tmp_path: Path) -> None:
    """Cut exactly between packets no packet fails; only the header tells."""
    path = encode(tmp_path / "whole.mp4", numbered(90), codec="mpeg4", container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][40]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:position])
    with pytest.raises(
        DecodeError, match=r"cut\.mp4: truncated: frames end at 1\.33 s of the 3\.00 s the header declares"
    ):
        list(read_frames(str(cut)))


def test_damage_in_the_middle_fails_the_file_but_not_spans_before_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "whole.mp4", numbered(60), options={**B_FRAMES, "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[36]
    # Not the length in front of a unit alone: what is inside must be nonsense too.
    data[position : position + size] = b"\xff" * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(data))
    with pytest.raises(DecodeError, match=r"broken\.mp4: InvalidDataError: .*Invalid data"):
        list(read_frames(str(broken)))
    pts = [p for p, _ in read_frames(str(path))]
    span = read_span(str(broken), pts[12], pts[20], FrameGrid(fps=30, frames=8, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == list(range(12, 20))


def test_undecodable_starts_are_passed_over(tmp_path: Path) -> None:
    """A transport stream cut out of a broadcast starts in the middle of a group of pictures."""
    path = encode(tmp_path / "whole.ts", numbered(60), options={**B_FRAMES, "bf": "0", "g": "20"})
    with av.open(str(path)) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    cut = tmp_path / "cut.ts"
    # The tables at the start of the file are kept.
    cut.write_bytes(path.read_bytes()[: 188 * 3] + path.read_bytes()[packets[7] :])
    found = numbers(cut)
    assert found[-40:] == list(range(20, 60))


@pytest.mark.parametrize(
    ("name", "data"), [("empty.mp4", b""), ("text.mp4", b"no video, really\n" * 100), ("zeros.mkv", bytes(5000))]
)
def test_files_that_are_no_video(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DecodeError, match=rf"{name}: \w+Error"):
        probe(str(tmp_path / name))


def test_a_file_without_video_and_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"sound\.wav: no video stream"):
        probe(str(path))
    with pytest.raises(DecodeError, match=r"none\.mp4: FileNotFoundError"):
        probe(str(tmp_path / "none.mp4"))


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_ends_in_frames_or_in_an_error(tmp_path: Path, seed: int) -> None:
    """Never a hang, a crash or another kind of error (the test's time limit is the bound on hanging)."""
    rng = np.random.default_rng(seed)
    codec, suffix = [("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libx264", "ts")][seed % 4]
    options = (
        {"preset": "ultrafast"}
        if codec == "libx264"
        else {"cpu-used": "8", "deadline": "realtime"}
        if "vp9" in codec
        else {}
    )
    path = encode(tmp_path / f"fuzz.{suffix}", numbered(24), codec=codec, options=options)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    hits = rng.integers(0, len(data), 30)
    data[hits] = rng.integers(0, 256, len(hits))
    path.write_bytes(data.tobytes())
    pts: list[int] = []
    with contextlib.suppress(DecodeError):
        for p, _ in read_frames(str(path), 32, 16):
            pts.append(p)
    assert pts == sorted(set(pts))


def test_every_open_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(30), options=B_FRAMES))
    log = tmp_path / "opens.txt"
    monkeypatch.setenv(OPEN_LOG, str(log))
    probe(path)
    list(read_frames(path))
    last = [p for p, _ in read_frames(path)][-1]
    read_span(path, last, last + 1, FrameGrid(fps=1, frames=1, width=32, height=32))
    assert log.read_text().splitlines() == [path] * 4


def test_a_file_object_reads_as_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(30), options=B_FRAMES))
    local, local_info = list(read_frames(path)), probe("file://" + path)
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    opened = storage.open_input
    monkeypatch.setattr(storage, "resolve", lambda uri: (storage._filesystem(""), uri))
    assert opened(path).read(4)
    assert probe(path) == local_info
    remote = list(read_frames(path))
    assert [p for p, _ in remote] == [p for p, _ in local]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(remote, local, strict=True))
    start = local[17][0]
    assert (
        number_of(read_span(path, start, start + 1, FrameGrid(fps=1, frames=1, width=128, height=64)).frames[0]) == 17
    )


def test_decoding_uses_one_thread(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(3), options=LOSSLESS))
    with open_video(path) as video:
        assert video._stream.codec_context.thread_count == 1
    assert dataclasses.is_dataclass(video.info)


@pytest.mark.slow
def test_rotated_footage_is_upright(real_videos: Path) -> None:
    path = str(real_videos / "rotated_90.mov")
    info = probe(path)
    assert (info.width, info.height, info.rotation_deg) == (320, 568, -90)
    with av.open(path) as container:
        coded = next(container.decode(video=0)).to_ndarray(format="gray8")
    upright = next(read_frames(path, pixel_format="gray8"))[1]
    assert np.corrcoef(upright.ravel(), np.rot90(coded, -1).ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_spans_of_real_footage_are_those_of_a_full_decode(real_videos: Path) -> None:
    rng = np.random.default_rng(5)
    paths = [
        path
        for path in sorted(real_videos.glob("*.*"))
        if path.suffix != ".md" and path.stem not in ("corrupted", "motorcycle_2160p")
    ]
    for path in map(str, paths):
        sequential = list(read_frames(path, 64, 64))
        crop = (0, 0, probe(path).width, probe(path).height)
        for k in {0, len(sequential) - 1, *rng.integers(0, len(sequential), 3).tolist()}:
            pts, picture = sequential[k]
            span = read_span(path, pts, pts + 1, FrameGrid(fps=1, frames=1, width=64, height=64), crop=crop)
            assert span.pts == (pts,), path
            assert np.array_equal(span.frames[0], picture), f"{path} at PTS {pts}"
