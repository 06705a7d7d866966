"""Animations named as videos: those that FFmpeg reads have all their frames, others fail with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.video.decode import DecodeError, probe, read_frames

LEVELS = (30, 90, 150, 210)


def write(path: Path, n: int, codec: str) -> str:
    first, *others = [Image.new("RGB", (64, 48), (level,) * 3) for level in LEVELS[:n]]
    first.save(path, codec, save_all=n > 1, append_images=others, duration=100)
    return str(path)


@pytest.mark.parametrize(("name", "codec"), [("a.gif", "GIF"), ("a.png", "PNG"), ("a.apng", "PNG"), ("a.avif", "AVIF")])
def test_animation_is_a_video(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, len(LEVELS), codec)
    time_base = probe(path).time_base
    frames = list(read_frames(path))
    assert [float(pts * time_base) for pts, _ in frames] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(np.abs(image.astype(int) - level).max() <= 3 for (_, image), level in zip(frames, LEVELS, strict=True))


@pytest.mark.parametrize(("name", "codec", "n"), [("a.webp", "WEBP", 4), ("a.jpg", "JPEG", 1), ("a.png", "PNG", 1)])
def test_what_is_no_video_fails_with_the_fix(tmp_path: Path, name: str, codec: str, n: int) -> None:
    with pytest.raises(DecodeError, match=rf"{name}: ArgumentError: not in a container .* under images:, and convert"):
        probe(write(tmp_path / name, n, codec))
