"""Decoding: exact PTS, rotation, colour, seeking, and damaged files that end in frames or in an error that names
them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cluster import storage
from cluster.unreadable import UnreadableError, cannot_be_read
from pipelines.video.decode import OPEN_LOG, DecodeError, open_video, probe, read_frames
from pipelines.video.spans import FrameGrid, read_span
from tests.support.videos import B_FRAMES, LOSSLESS, encode, number_of, numbered

ONE_FRAME = FrameGrid(fps=1, frames=1, width=128, height=64)


def numbers(path: Path) -> list[int]:
    """Return the numbers that the frames of a video carry, in the order they are decoded."""
    return [number_of(frame) for _, frame in read_frames(str(path))]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_b_frames_come_in_presentation_order(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"b.{suffix}", numbered(40), options=B_FRAMES)
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored), "the file has no B-frames to test with"
    pts = [p for p, _ in read_frames(str(path))]
    time_base = probe(str(path)).time_base
    assert [float((p - pts[0]) * time_base) for p in pts] == pytest.approx([k / 30 for k in range(40)], abs=6e-4)
    assert numbers(path) == list(range(40))


def test_variable_frame_rate_keeps_every_pts(tmp_path: Path) -> None:
    pts = np.cumsum(np.random.default_rng(1).integers(1, 200, 50)).tolist()
    path = encode(tmp_path / "vfr.mkv", numbered(50), pts=pts, time_base=Fraction(1, 1000), options=B_FRAMES)
    assert probe(str(path)).time_base == Fraction(1, 1000)
    assert [p for p, _ in read_frames(str(path))] == pts


@pytest.mark.slow
def test_seek_decodes_no_more_than_one_gop(tmp_path: Path) -> None:
    options = {"bf": "0", "x264-params": "keyint=12:min-keyint=12:scenecut=0"}
    path = str(encode(tmp_path / "long.mp4", numbered(200), options=options))
    pts = [p for p, _ in read_frames(path)]
    decoded_pts: list[int] = []
    with open_video(path) as video:
        assert video.seek(pts[150])
        for decoded in video.decoded_frames():
            decoded_pts.append(decoded.pts)
            if decoded.pts >= pts[150]:
                break
    assert decoded_pts[0] == pts[144]
    assert len(decoded_pts) == 7


@pytest.mark.parametrize("rotation_deg", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation_deg: int) -> None:
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 256, (4, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    plain = str(encode(tmp_path / "plain.mp4", [image] * 3, options=LOSSLESS))
    rotated = str(encode(tmp_path / "rotated.mp4", [image] * 3, options=LOSSLESS, rotation_deg=rotation_deg))
    info = probe(rotated)
    assert info.rotation_deg % 360 == rotation_deg % 360
    assert (info.coded_width, info.coded_height) == (128, 64)
    assert (info.width, info.height) == ((64, 128) if rotation_deg % 180 else (128, 64))
    upright = np.rot90(next(read_frames(plain))[1], rotation_deg // 90)
    assert np.array_equal(next(read_frames(rotated))[1], upright)
    span = read_span(rotated, 0, 10**6, FrameGrid(fps=1, frames=1, width=info.width, height=info.height))
    assert np.array_equal(span.frames[0], upright)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 255
    path = str(encode(tmp_path / "wide.mp4", [image] * 2, options=LOSSLESS, aspect=Fraction(2, 1)))
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
def test_bit_depth_and_range_do_not_change_the_image(
    tmp_path: Path, pixel_format: str, codec: str, color_range: int
) -> None:
    if pixel_format == "rgb24" and color_range == 1:
        pytest.skip("RGB has the full range")
    values = np.linspace(0, 255, 8).astype(np.uint8)
    image = np.repeat(np.repeat(np.repeat(values[None, :, None], 16, axis=1), 64, axis=0), 3, axis=2)
    options = {
        "libx265": {"x265-params": "lossless=1:log-level=none:pools=1:frame-threads=1"},
        "ffv1": {},
    }.get(codec, LOSSLESS)
    colours = {} if pixel_format == "rgb24" else {"color_range": color_range, "colorspace": 1}
    path = encode(
        tmp_path / "values.mkv", [image] * 2, codec=codec, pixel_format=pixel_format, options=options, **colours
    )
    decoded = next(read_frames(str(path)))[1]
    assert np.abs(decoded.astype(int) - image).max() <= 2
    assert probe(str(path)).color_range == ("full" if color_range == 2 else "limited")


@pytest.mark.parametrize(("height", "matrix"), [(720, 1), (480, 5)])
def test_untagged_video_is_bt709_from_720_lines_on(tmp_path: Path, height: int, matrix: int) -> None:
    image = np.zeros((height, 64, 3), np.uint8)
    image[:] = (200, 60, 30)
    path = encode(tmp_path / "untagged.mp4", [image] * 2, options=LOSSLESS, colorspace=matrix, tag=False)
    assert np.abs(next(read_frames(str(path)))[1].astype(int) - image).max() <= 3


def test_shrinking_leaves_no_aliases(tmp_path: Path) -> None:
    image = np.zeros((128, 256, 3), np.uint8)
    image[:, ::2] = 255
    path = str(encode(tmp_path / "stripes.mp4", [image] * 2, options=LOSSLESS))
    for size in ((32, 16), (50, 30)):
        small = next(read_frames(path, *size))[1].astype(int)
        # A window of 5.12 columns holds between 2.12 and 3 white ones: at most 12% more or less than half.
        assert np.abs(small - 127).max() <= 0.12 * 255, "one-pixel stripes must average to grey"


def test_negative_pts(tmp_path: Path) -> None:
    pts = list(range(-300, 700, 100))
    path = encode(
        tmp_path / "negative.ts",
        numbered(10),
        pts=pts,
        time_base=Fraction(1, 1000),
        options={"bf": "0"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    found = [p for p, _ in read_frames(str(path))]
    assert found == [90 * p for p in pts]
    span = read_span(str(path), found[2], found[6], FrameGrid(fps=10, frames=4, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == [2, 3, 4, 5]


def test_streams_without_pts_follow_their_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", numbered(20), options=B_FRAMES)
    assert numbers(path) == list(range(20))
    pts = [p for p, _ in read_frames(str(path))]
    assert len(set(np.diff(pts))) == 1
    fps = 1 / float(probe(str(path)).time_base * (pts[1] - pts[0]))
    span = read_span(str(path), pts[7], pts[11], FrameGrid(fps=fps, frames=4, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == [7, 8, 9, 10]


def test_packed_b_frames_in_avi_lose_no_frame(video_folder: Path) -> None:
    path = str(video_folder / "mpeg4_320x240.avi")
    pts = [p for p, _ in read_frames(path, 32, 24)]
    assert pts == list(range(pts[0], pts[0] + 164))


@pytest.mark.slow
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


@pytest.mark.slow
def test_stream_that_ends_early_between_packets_is_truncated(tmp_path: Path) -> None:
    """No packet fails if the file is cut exactly between two of them; only the header shows that frames are missing."""
    path = encode(tmp_path / "whole.mp4", numbered(90), codec="mpeg4", container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][40]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:position])
    message = r"cut\.mp4: truncated: frames end at 1\.33 s of the 3\.00 s the header declares"
    with pytest.raises(DecodeError, match=message):
        list(read_frames(str(cut)))


@pytest.mark.slow
def test_damage_fails_the_file_but_not_spans_before_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "whole.mp4", numbered(60), options={**B_FRAMES, "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[36]
    # The whole packet is overwritten, not only the length in front of a unit.
    data[position : position + size] = b"\xff" * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(data))
    with pytest.raises(DecodeError, match=r"broken\.mp4: InvalidDataError: .*Invalid data"):
        list(read_frames(str(broken)))
    pts = [p for p, _ in read_frames(str(path))]
    span = read_span(str(broken), pts[12], pts[20], FrameGrid(fps=30, frames=8, width=128, height=64))
    assert [number_of(frame) for frame in span.frames] == list(range(12, 20))


def test_start_that_cannot_be_decoded_is_skipped(tmp_path: Path) -> None:
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
def test_files_without_a_container_fail(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DecodeError, match=rf"{name}: \w+Error"):
        probe(str(tmp_path / name))


def test_file_without_video_and_missing_file_fail(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"sound\.wav: no video stream"):
        probe(str(path))
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        probe(str(tmp_path / "none.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_damage_ends_in_frames_or_in_an_error(tmp_path: Path, seed: int) -> None:
    """There is never a hang, a crash or another kind of error (the test's time limit bounds a hang)."""
    rng = np.random.default_rng(seed)
    codec, suffix = [("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libx264", "ts")][seed % 4]
    fast = {"libx264": {"preset": "ultrafast"}, "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"}}
    path = encode(tmp_path / f"fuzz.{suffix}", numbered(24), codec=codec, options=fast.get(codec, {}))
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
    read_span(path, last, last + 1, ONE_FRAME)
    assert log.read_text().splitlines() == [path] * 4


def test_remote_file_reads_as_the_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(30), options=B_FRAMES))
    local, local_info = list(read_frames(path)), probe("file://" + path)
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    opened = storage.open_input
    monkeypatch.setattr(storage, "resolve", lambda uri: (storage.LOCAL, uri))
    assert opened(path).read(4)
    assert probe(path) == local_info
    remote = list(read_frames(path))
    assert [p for p, _ in remote] == [p for p, _ in local]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(remote, local, strict=True))
    start = local[17][0]
    assert number_of(read_span(path, start, start + 1, ONE_FRAME).frames[0]) == 17


class _FailingStore(io.FileIO):
    """A file whose reads fail from an offset on, as those of a store that goes away."""

    fails_at = 0

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self.fails_at:
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
        return super().read(1024) or b""


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_outage_while_reading_is_not_bad_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, name: str
) -> None:
    path = encode(tmp_path / name, numbered(60), options=LOSSLESS)
    monkeypatch.setattr(_FailingStore, "fails_at", share * path.stat().st_size)
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "open_input", lambda uri: _FailingStore(path))
    with pytest.raises(UnreadableError, match=f"^s3://bucket/{name}: AWS Error NETWORK_CONNECTION"):
        list(read_frames(f"s3://bucket/{name}"))


def test_too_many_open_files_are_not_bad_content(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(3), options=LOSSLESS))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        held = [stack.enter_context(open(path, "rb")) for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(n_open, held[-1].fileno() + 1), limits[1]))
        while True:
            try:
                stack.enter_context(open(path, "rb"))
            except OSError:
                break
        with pytest.raises(OSError, match="Too many open files") as raised:
            probe(path)
    assert cannot_be_read(raised.value)


def test_decoding_uses_one_thread(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", numbered(3), options=LOSSLESS))
    with open_video(path) as video:
        assert video._stream.codec_context.thread_count == 1
    assert dataclasses.is_dataclass(video.info)


@pytest.mark.slow
def test_rotated_footage_is_upright(video_folder: Path) -> None:
    path = str(video_folder / "rotated_90.mov")
    info = probe(path)
    assert (info.width, info.height, info.rotation_deg) == (320, 568, -90)
    with av.open(path) as container:
        coded = next(container.decode(video=0)).to_ndarray(format="gray8")
    upright = next(read_frames(path, pixel_format="gray8"))[1]
    assert np.corrcoef(upright.ravel(), np.rot90(coded, -1).ravel())[0, 1] > 0.99
