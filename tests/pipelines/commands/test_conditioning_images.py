"""Conditioning images: read as `encode` reads images, and an error names a file that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.config import ConfigError
from pipelines.commands._conditioning_images import check_images, read_conditioning_image
from pipelines.video.spans import FrameGrid, read_span
from training.sampling.settings import SampleSettings


def write_photo(folder: Path, width: int, height: int) -> str:
    """Write an image of random pixels and return its path."""
    path = folder / f"{width}x{height}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("size", [(120, 80), (200, 64), (96, 300), (96, 64)])
def test_an_image_is_cropped_and_scaled_as_in_training(
    size: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = write_photo(tmp_path, *size)
    image_HWC = read_conditioning_image(uri, 96, 64)
    assert image_HWC.shape == (64, 96, 3)
    span = read_span(uri, 0, 1, FrameGrid(fps=8, frames=1, width=96, height=64), kind="image")
    assert np.array_equal(image_HWC, span.frames[0])
    assert not caplog.records


def test_a_small_image_is_enlarged_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_conditioning_image(write_photo(tmp_path, 200, 40), 96, 64).shape == (64, 96, 3)
    assert "is 200x40 and is enlarged to 96x64" in caplog.text


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for uri, message in (
        (broken, "broken.jpg: cannot be read as an image"),
        (tmp_path / "gone.jpg", "gone.jpg: cannot be read: "),
    ):
        with pytest.raises(ConfigError, match=message):
            read_conditioning_image(str(uri), 96, 64)
        with pytest.raises(ConfigError, match=message):
            check_images([SampleSettings(prompt="a"), SampleSettings(prompt="a", last=str(uri))])
