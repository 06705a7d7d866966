"""Bars around the image: found to a line, on both sides or on one, in the dark, under a white sky, and over all
shots."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import UInt8Array
from pipelines.video.letterbox import border_profiles, crop_boxes
from pipelines.video.scale import Box
from tests.support.images import blots


def boxed(image: UInt8Array, top: int, bottom: int, left: int = 0, right: int = 0, value: int = 0) -> UInt8Array:
    """Return an image with bars of these many pixels of 1280 x 720, shrunk to the size of a detailed sample."""
    frame = np.full((720, 1280), value, np.uint8)
    inner = cv2.resize(image, (1280 - left - right, 720 - top - bottom), interpolation=cv2.INTER_AREA)
    frame[top : 720 - bottom, left : 1280 - right] = inner
    return np.asarray(cv2.resize(frame, (256, 144), interpolation=cv2.INTER_AREA), np.uint8)


def box_of(*images: UInt8Array) -> Box:
    """Return the box of one shot of 1280 x 720, sampled as these images."""
    return crop_boxes([[border_profiles(image) for image in images]], 1280, 720)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"),
    [(0, 0, 0, 0), (90, 90, 0, 0), (87, 93, 0, 0), (0, 60, 0, 0), (0, 0, 437, 437), (60, 60, 100, 40), (3, 0, 0, 0)],
)
@pytest.mark.parametrize("value", [0, 16, 255])
def test_bars_are_found_to_a_line(top: int, bottom: int, left: int, right: int, value: int) -> None:
    content = [blots(seed) // 2 + 50 for seed in (1, 2, 3)]
    box = box_of(*(boxed(image, top, bottom, left, right, value) for image in content))
    expected = (left, top, 1280 - right, 720 - bottom)
    # To half a line of the sampled image, which has 144: 2.5 pixels. Bars of less than a line are not seen.
    assert box == pytest.approx(expected, abs=3)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 250), st.integers(0, 250))
def test_at_most_a_line_of_the_image_is_cut_off(top: int, bottom: int) -> None:
    x0, y0, x1, y1 = box_of(*(boxed(blots(seed) // 2 + 60, top, bottom) for seed in (6, 7)))
    assert (x0, x1) == (0, 1280)
    assert top - 5 <= y0 <= top + 5
    assert 720 - bottom - 5 <= y1 <= 720 - bottom + 5


def test_night_is_no_bar() -> None:
    rng = np.random.default_rng(8)
    sky = np.clip(rng.normal(3, 1, (144, 256)), 0, 255)
    # Lamps low in the image, whose glow fades upwards.
    rows, columns = np.mgrid[:144, :256]
    glow = 120 * np.exp(-(((columns - 120) / 60) ** 2) - ((rows - 110) / 25) ** 2)
    assert box_of(np.clip(sky + glow, 0, 255).astype(np.uint8)) == (0, 0, 1280, 720)
    assert box_of(*[np.clip(sky, 0, 255).astype(np.uint8)] * 3) == (0, 0, 1280, 720)
    assert box_of(np.zeros((144, 256), np.uint8)) == (0, 0, 1280, 720)


def test_bar_must_last_for_the_whole_shot() -> None:
    bars, none = boxed(blots(1), 90, 90), boxed(blots(1), 0, 0)
    assert box_of(bars, bars) == pytest.approx((0, 90, 1280, 630), abs=3)
    assert box_of(bars, none) == (0, 0, 1280, 720)


def test_one_bright_sample_shows_the_bars_of_a_dark_shot() -> None:
    dark, bright = boxed(blots(1) // 32, 90, 90), boxed(blots(1), 90, 90)
    assert box_of(dark, bright, dark) == pytest.approx((0, 90, 1280, 630), abs=3)


def test_bar_with_a_subtitle_in_it() -> None:
    plain, titled = boxed(blots(1), 90, 90), boxed(blots(2), 90, 90)
    titled[133:138, 80:176:2] = 235
    assert box_of(plain, titled) == pytest.approx((0, 90, 1280, 630), abs=3)
    # Text that begins at the end of the bar is taken for image: there may be more than text.
    titled[131:143, 0:200:2] = 235
    assert box_of(plain, titled)[3] >= 715


def padded(image: UInt8Array, top: int, bottom: int, left: int = 0, right: int = 0, value: int = 0) -> UInt8Array:
    """Return an image in bars of these many lines of its own size."""
    return np.pad(image, ((top, bottom), (left, right)), constant_values=value)


def moved(box: Box, x: int, y: int) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def crops(*shots: Sequence[UInt8Array]) -> list[Box]:
    """Return the boxes of shots of sampled images, in pixels of these."""
    height, width = shots[0][0].shape
    return crop_boxes([[border_profiles(image) for image in shot] for shot in shots], width, height)


def day(seed: int, lowest: int = 50) -> UInt8Array:
    """Draw blots, none of them darker than `lowest`."""
    return np.asarray(cv2.resize(blots(seed), (256, 144), interpolation=cv2.INTER_AREA) // 2 + lowest, np.uint8)


def night(seed: int) -> UInt8Array:
    """Draw black, with a lamp whose glow reaches no side."""
    rows, columns = np.mgrid[:144, :256]
    glow = np.exp(-(((columns - 120) / 25) ** 2) - ((rows - 70) / 18) ** 2)
    return (day(seed).astype(float) * glow).astype(np.uint8)


def evening(seed: int) -> UInt8Array:
    """Draw an image that brightens from the top, which is black, to the bottom."""
    return np.asarray(day(seed).astype(float) * np.clip((np.arange(144) - 30) / 90, 0, 1)[:, None], np.uint8)


def coast(seed: int) -> UInt8Array:
    """Draw a sky clipped to white over hills, which rise to its lowest lines over half of the width."""
    image = day(seed, 20)
    horizon = 26 + np.round(9 * np.abs(np.sin(np.arange(256) / 60 + seed))).astype(int)
    image[np.arange(144)[:, None] < horizon] = 255
    return image


CONTENT = {"day": day, "evening": evening, "coast": coast}


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(sorted(CONTENT)),
    st.lists(st.integers(0, 60), min_size=1, max_size=3, unique=True),
    st.integers(3, 45),
    st.booleans(),
    st.integers(0, 16),
    st.booleans(),
)
def test_bars_around_an_image_keep_its_box(
    kind: str, seeds: list[int], bar: int, sides: bool, value: int, mirror: bool
) -> None:
    """To a line, the same part of an image is cut off with bars around it as without, mirrored or not."""
    images = [CONTENT[kind](seed)[:, :: -1 if mirror else 1] for seed in seeds]
    around = (0, 0, bar, bar) if sides else (bar, bar, 0, 0)
    (plain,) = crops(images)
    (with_bars,) = crops([padded(image, *around, value=value) for image in images])
    assert with_bars == pytest.approx(moved(plain, around[2], around[0]), abs=1)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.sampled_from(sorted(CONTENT)), st.integers(0, 60), *[st.integers(0, 40)] * 4)
def test_mirrored_image_has_the_mirrored_box(
    kind: str, seed: int, top: int, bottom: int, left: int, right: int
) -> None:
    image = padded(CONTENT[kind](seed), top, bottom, left, right)
    width = image.shape[1]
    (x0, y0, x1, y1), (mirrored,) = crops([image])[0], crops([image[:, ::-1]])
    assert mirrored == pytest.approx((width - x1, y0, width - x0, y1), abs=1)


@pytest.mark.slow
def test_white_sky_is_no_bar_and_white_bars_are() -> None:
    for seed in range(8):
        assert crops([coast(seed)]) == [(0, 0, 256, 144)]
        assert crops([padded(coast(seed), 20, 20, value=255)]) == [(0, 20, 256, 164)]
        assert crops([padded(day(seed), 0, 0, 30, 30, value=255)]) == [(30, 0, 286, 144)]


@pytest.mark.slow
def test_edge_in_the_dark_is_taken_from_the_opposite_side() -> None:
    for seed in range(8):
        assert crops([padded(evening(seed), 24, 24)]) == [(0, 24, 256, 168)]
    # Where the opposite side has no bar, only an edge through most of the image counts.
    half_edge = day(1)
    half_edge[100:, :128] = 0
    assert crops([padded(half_edge, 0, 24)]) == [(0, 0, 256, 168)]
    assert crops([padded(day(1), 0, 24)]) == [(0, 0, 256, 144)]


def test_white_sky_is_no_pair_of_a_black_bar() -> None:
    assert crops([padded(coast(1), 0, 20)]) == [(0, 0, 256, 144)]


def test_object_on_a_plain_background_is_not_cropped_to() -> None:
    card = np.zeros((144, 256), np.uint8)
    card[60:84, 100:160] = 200
    assert crops([card]) == [(0, 0, 256, 144)]
    square = np.full((144, 256), 30, np.uint8)
    square[40:104, 60:200] = 220
    assert crops([square]) == [(0, 0, 256, 144)]


def test_floor_in_the_shade_is_no_bar() -> None:
    room = day(1)
    room[126:] = 30
    assert crops([room]) == [(0, 0, 256, 144)]
    assert crops([padded(room, 24, 24)]) == [(0, 24, 256, 168)]


def test_ringing_on_one_side_hides_no_bar() -> None:
    ringing = padded(evening(3), 24, 24)
    ringing[21:24, 60:180:2] = 20
    assert crops([ringing]) == [(0, 24, 256, 168)]


@pytest.mark.slow
def test_dark_shot_has_the_bars_of_the_others() -> None:
    def film(bar: int) -> list[list[UInt8Array]]:
        shots = [day(1), day(2)], [night(3)], [day(4)]
        return [[padded(image, bar, bar) for image in shot] for shot in shots]

    assert crops(*film(0)) == [(0, 0, 256, 144)] * 3
    assert crops(*film(24)) == [(0, 24, 256, 168)] * 3
    # Alone it shows no bars, and nothing of it is cut off.
    assert crops(film(24)[1]) == [(0, 0, 256, 192)]
    assert crops([np.zeros((192, 256), np.uint8)], film(24)[0])[0] == (0, 24, 256, 168)


def test_shot_with_image_content_there_has_no_bars() -> None:
    bars = [padded(day(1), 24, 24)] * 9
    full = np.asarray(cv2.resize(day(5), (256, 192)), np.uint8)
    assert crops(bars, [full]) == [(0, 24, 256, 168), (0, 0, 256, 192)]
    lamp = padded(night(3), 24, 24)
    lamp[10:14, 100:110] = 200
    assert crops(bars, [lamp])[1] == (0, 0, 256, 192)


def test_dark_shot_has_the_most_frequent_of_two_formats() -> None:
    wide, tall = [padded(day(1), 24, 24), padded(day(2), 24, 24)], [padded(day(3)[:132], 30, 30)]
    dark = [padded(night(4)[:132], 30, 30)]
    boxes = {"wide": (0, 24, 256, 168), "tall": (0, 30, 256, 162)}
    assert crops(wide, tall, dark)[2] == boxes["wide"]
    assert crops(dark, tall, wide, tall, tall)[0] == boxes["tall"]
    assert crops(wide, tall, dark)[:2] == list(boxes.values())


@pytest.mark.slow
@settings(max_examples=30)
@given(st.permutations(range(5)))
def test_order_of_shots_changes_nothing(order: list[int]) -> None:
    shots = [[padded(image, 24, 24)] for image in (day(1), night(2), day(3), night(4), coast(5))]
    assert crops(*[shots[i] for i in order]) == [crops(*shots)[i] for i in order]


def test_subtitle_over_the_end_of_one_bar() -> None:
    titled = padded(day(1), 24, 24)
    titled[164:176, 40:216:2] = 235
    assert crops([padded(day(2), 24, 24), titled]) == [(0, 24, 256, 168)]
