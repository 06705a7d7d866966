"""Images for engines: times of the frames of a video, and scaling."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from captioning.engines import _images
from tests.support.chat_questions import random_jpeg

pytestmark = pytest.mark.slow


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=300).map(sorted))
def test_times_come_back_from_the_metadata(times_s: list[float]) -> None:
    metadata = transformers.video_utils.VideoMetadata(**_images.video_metadata(times_s, len(times_s)))
    assert np.abs(np.array(metadata.timestamps) - times_s).max() <= 0.5 / _images.TICKS_PER_S + 1e-9
    if (interval_s := (times_s[-1] - times_s[0]) / (len(times_s) - 1)) > 0.1:
        assert metadata.sampled_fps == pytest.approx(1 / interval_s, rel=0.01)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1024, 8192))
def test_scaling_keeps_aspect_and_pixel_limit(width: int, height: int, max_pixels: int) -> None:
    image = _images.decode(random_jpeg(0, width, height), max_pixels)
    assert image.width * image.height <= max(max_pixels, min(width, height))
    if width * height <= max_pixels:
        assert image.size == (width, height)
    else:
        assert abs(image.width / width - image.height / height) <= 1 / min(width, height)
