"""Written files: frames return at their times, the same frames give the same bytes, other input is refused."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cluster.arrays import Pixels
from training.sampling.media import write_mp4, write_png, write_video


def moving_gradient(n: int = 10, width: int = 64, height: int = 48) -> Pixels:
    """Return a video `[n, height, width, 3]` of smooth colours, of which blue moves."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [np.stack([x * 4 % 256, y * 5 % 256, (x + y + 8 * k) % 256 // 4 * 2 + 60], axis=-1) for k in range(n)]
    ).astype(np.uint8)


def test_frames_return_at_their_times(tmp_path: Path) -> None:
    frames = moving_gradient()
    write_mp4(str(tmp_path / "a.mp4"), frames, 24000 / 1001, crf=4)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = list(container.decode(video=0))
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.color_range, stream.codec_context.colorspace) == (1, 1)
        assert float(stream.average_rate or 0) == pytest.approx(24000 / 1001)
    assert [frame.time for frame in decoded] == pytest.approx([k * 1001 / 24000 for k in range(10)], abs=1e-4)
    # Chroma has half the resolution: single pixels may differ, the mean hardly.
    errors = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(float) - frames
    assert np.abs(errors).mean() < 3.0


def test_frames_of_an_array_or_iterable_give_the_same_bytes(tmp_path: Path) -> None:
    write_mp4(str(tmp_path / "a.mp4"), moving_gradient(), 8)
    write_mp4(str(tmp_path / "b.mp4"), iter(moving_gradient()), 8.0)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first, so that it streams"


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((0, 16, 16, 3), np.uint8), 8.0, "no frames to write"),
        (np.zeros((2, 15, 16, 3), np.uint8), 8.0, "16x15: both sides of an mp4 must be even"),
        (np.zeros((2, 16, 16, 3), np.float32), 8.0, r"a frame is float32 \[16, 16, 3\]"),
        (np.zeros((2, 16, 16), np.uint8), 8.0, r"a frame is uint8 \[16, 16\]"),
        (np.zeros((2, 16, 16, 3), np.uint8), 0.0, "0 fps: the frame rate must be positive"),
    ],
)
def test_arrays_that_are_no_video_are_refused(tmp_path: Path, frames: Pixels, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(str(tmp_path / "a.mp4"), frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_different_sizes_are_refused_without_a_file(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)]
    with pytest.raises(ValueError, match="as the first one"):
        write_mp4(str(tmp_path / "a.mp4"), frames, 8)
    assert list(tmp_path.iterdir()) == []


def test_png_is_lossless(tmp_path: Path) -> None:
    write_png(str(tmp_path / "sub" / "a.png"), moving_gradient()[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sub" / "a.png")), moving_gradient()[0])
    with pytest.raises(ValueError, match="uint8"):
        write_png(str(tmp_path / "b.png"), np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_repeat_and_last_as_long_as_the_video(tmp_path: Path, suffix: str) -> None:
    frames, uri = moving_gradient(), str(tmp_path / f"a.{suffix}")
    write_video(uri, iter(frames), 24)
    write_video(str(tmp_path / f"b.{suffix}"), frames, 24.0)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    with Image.open(uri) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (10, 0)
        durations_ms, errors = [], []
        for index, image in enumerate(frames):
            animation.seek(index)
            shown = np.asarray(animation.convert("RGB")).astype(int)
            durations_ms.append(animation.info["duration"])
            errors.append(np.abs(shown - image).mean())
    assert sum(durations_ms) == pytest.approx(1000 * 10 / 24, abs=5)
    assert max(durations_ms) - min(durations_ms) <= 10
    # A gif has 256 colours.
    assert max(errors) < 6


def test_the_suffix_names_the_format(tmp_path: Path) -> None:
    write_video(str(tmp_path / "a.MP4"), moving_gradient(), 8)
    write_mp4(str(tmp_path / "b.mp4"), moving_gradient(), 8)
    assert (tmp_path / "a.MP4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    for uri, fps, message in (
        ("a.avi", 8, r"a.avi: videos are written as \.mp4, \.gif or \.webp"),
        ("a.gif", 60, "60 fps: a gif has at most 50; take mp4 or webp"),
        ("a.webp", 0, "0 fps: the frame rate must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(str(tmp_path / uri), moving_gradient(), fps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.MP4", "b.mp4"]
