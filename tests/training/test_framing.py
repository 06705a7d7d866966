"""The framing of crops and of uncropped images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.framing import Framing, crop_framing, full_framing


def test_a_crop_is_in_shares_of_its_source() -> None:
    """A square from the middle of a wide frame, a strip at its bottom right, and that strip mirrored."""
    assert crop_framing((420, 0, 1500, 1080), 1920, 1080) == Framing(420 / 1920, 0.0, 1920, 1080)
    assert crop_framing((1000, 540, 1920, 1080), 1920, 1080) == Framing(1000 / 1920, 0.5, 1920, 1080)
    assert crop_framing((1000, 540, 1920, 1080), 1920, 1080, mirrored=True) == Framing(0.0, 0.5, 1920, 1080)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, 0, 21, 10), (5, 5, 5, 10), (0, 0, 20, 11)])
def test_a_box_outside_its_source_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not inside its source of 20x10 pixels"):
        crop_framing(box, 20, 10)


@pytest.mark.slow
@given(width=st.integers(16, 4096), height=st.integers(16, 4096), side=st.floats(1, 8192))
def test_an_uncropped_source_has_the_images_aspect(width: int, height: int, side: float) -> None:
    framing = full_framing(width, height, side)
    assert (framing.left, framing.top) == (0, 0)
    assert framing.source_width >= width
    assert framing.source_height >= height
    assert framing.source_width / framing.source_height == pytest.approx(width / height, rel=0.07)
    if side**2 > width * height:
        assert framing.source_side == pytest.approx(side, rel=0.05)
