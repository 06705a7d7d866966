"""Bars around the picture: found to a line, on both sides or on one, in the dark and under a white sky, and over all shots of a source."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import Pixels
from pipelines.video.letterbox import borders, crop_boxes
from pipelines.video.scale import Box
from tests.pipelines.video.test_motion import texture


def boxed(picture: Pixels, top: int, bottom: int, left: int = 0, right: int = 0, level: int = 0) -> Pixels:
    """A picture of 1280 x 720 with bars of these many pixels, looked at."""
    frame = np.full((720, 1280), level, np.uint8)
    inner = cv2.resize(picture, (1280 - left - right, 720 - top - bottom), interpolation=cv2.INTER_AREA)
    frame[top : 720 - bottom, left : 1280 - right] = inner
    return np.asarray(cv2.resize(frame, (256, 144), interpolation=cv2.INTER_AREA), np.uint8)


def boxes_of(*shots: Sequence[Pixels]) -> list[Box]:
    return crop_boxes([[borders(picture) for picture in shot] for shot in shots], 1280, 720)


def box_of(*pictures: Pixels) -> Box:
    return boxes_of(pictures)[0]


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"),
    [(0, 0, 0, 0), (90, 90, 0, 0), (87, 93, 0, 0), (0, 60, 0, 0), (0, 0, 437, 437), (60, 60, 100, 40), (3, 0, 0, 0)],
)
@pytest.mark.parametrize("level", [0, 16, 255])
def test_bars_are_found_to_a_line(top: int, bottom: int, left: int, right: int, level: int) -> None:
    content = [texture(seed) // 2 + 50 for seed in (1, 2, 3)]
    box = box_of(*(boxed(picture, top, bottom, left, right, level) for picture in content))
    expected = (left, top, 1280 - right, 720 - bottom)
    # To half a line of the picture looked at, which has 144: 2.5 pixels, and bars of less than one are not seen.
    assert box == pytest.approx(expected, abs=3)


@settings(max_examples=25)
@given(st.integers(0, 250), st.integers(0, 250))
def test_no_more_than_a_line_of_the_picture_is_lost(top: int, bottom: int) -> None:
    x0, y0, x1, y1 = box_of(*(boxed(texture(seed) // 2 + 60, top, bottom) for seed in (6, 7)))
    assert (x0, x1) == (0, 1280)
    assert top - 5 <= y0 <= top + 5
    assert 720 - bottom - 5 <= y1 <= 720 - bottom + 5


def test_a_night_is_no_bar() -> None:
    rng = np.random.default_rng(8)
    night = np.clip(rng.normal(3, 1, (144, 256)), 0, 255)
    # Lamps low in the picture, a glow that fades upwards, and stars in one look only.
    rows, columns = np.mgrid[:144, :256]
    glow = 120 * np.exp(-(((columns - 120) / 60) ** 2) - ((rows - 110) / 25) ** 2)
    lamps = night + glow
    assert box_of(np.clip(lamps, 0, 255).astype(np.uint8)) == (0, 0, 1280, 720)
    assert box_of(*[np.clip(night, 0, 255).astype(np.uint8)] * 3) == (0, 0, 1280, 720)
    assert box_of(np.zeros((144, 256), np.uint8)) == (0, 0, 1280, 720)


def test_a_bar_stays_over_the_whole_shot() -> None:
    bars, none = boxed(texture(1), 90, 90), boxed(texture(1), 0, 0)
    assert box_of(bars, bars) == pytest.approx((0, 90, 1280, 630), abs=3)
    assert box_of(bars, none) == (0, 0, 1280, 720)


def test_a_dark_shot_has_the_bars_that_one_look_shows() -> None:
    dark, bright = boxed(texture(1) // 32, 90, 90), boxed(texture(1), 90, 90)
    assert box_of(dark, bright, dark) == pytest.approx((0, 90, 1280, 630), abs=3)


def test_a_subtitle_in_a_bar_leaves_it_a_bar() -> None:
    plain, titled = boxed(texture(1), 90, 90), boxed(texture(2), 90, 90)
    titled[133:138, 80:176:2] = 235
    assert box_of(plain, titled) == pytest.approx((0, 90, 1280, 630), abs=3)
    # Text that begins at the bar's end is taken for picture: what reaches there may be more than text.
    titled[131:143, 0:200:2] = 235
    assert box_of(plain, titled)[3] >= 715


def padded(picture: Pixels, top: int, bottom: int, left: int = 0, right: int = 0, level: int = 0) -> Pixels:
    """A picture as it is looked at, in bars of these many lines."""
    return np.pad(picture, ((top, bottom), (left, right)), constant_values=level)


def moved(box: Box, x: int, y: int) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def crops(*shots: Sequence[Pixels]) -> list[Box]:
    """The boxes of shots of pictures, in their own pixels."""
    height, width = shots[0][0].shape
    return crop_boxes([[borders(picture) for picture in shot] for shot in shots], width, height)


def small(seed: int, lowest: int = 50) -> Pixels:
    return np.asarray(cv2.resize(texture(seed), (256, 144), interpolation=cv2.INTER_AREA) // 2 + lowest, np.uint8)


def night(seed: int) -> Pixels:
    """Black from end to end, but for a lamp whose glow reaches no side."""
    rows, columns = np.mgrid[:144, :256]
    glow = np.exp(-(((columns - 120) / 25) ** 2) - ((rows - 70) / 18) ** 2)
    return (small(seed).astype(float) * glow).astype(np.uint8)


def evening(seed: int) -> Pixels:
    """Brighter from the top, which is black, to the bottom."""
    return np.asarray(small(seed).astype(float) * np.clip((np.arange(144) - 30) / 90, 0, 1)[:, None], np.uint8)


def coast(seed: int) -> Pixels:
    """A sky clipped to white over hills, which rise to its lowest lines over half of the width."""
    picture = small(seed, 20)
    horizon = 26 + np.round(9 * np.abs(np.sin(np.arange(256) / 60 + seed))).astype(int)
    picture[np.arange(144)[:, None] < horizon] = 255
    return picture


CONTENT = {"day": small, "evening": evening, "coast": coast}


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(CONTENT)),
    st.lists(st.integers(0, 60), min_size=1, max_size=3, unique=True),
    st.integers(3, 45),
    st.booleans(),
    st.integers(0, 16),
    st.booleans(),
)
def test_bars_around_a_picture_leave_its_box_where_it_is(
    kind: str, seeds: list[int], bar: int, sides: bool, level: int, mirror: bool
) -> None:
    """Whatever of the picture is cut off, as much is with bars around it, on a picture that is mirrored as well; to a line."""
    pictures = [CONTENT[kind](seed) for seed in seeds]
    around = (0, 0, bar, bar) if sides else (bar, bar, 0, 0)
    (plain,) = crops([picture[:, ::-1] for picture in pictures] if mirror else pictures)
    (boxed,) = crops([padded(picture[:, ::-1] if mirror else picture, *around, level=level) for picture in pictures])
    assert boxed == pytest.approx(moved(plain, around[2], around[0]), abs=1)


@settings(max_examples=40)
@given(st.sampled_from(sorted(CONTENT)), st.integers(0, 60), *[st.integers(0, 40)] * 4)
def test_the_box_of_a_mirrored_picture_is_the_mirrored_box(
    kind: str, seed: int, top: int, bottom: int, left: int, right: int
) -> None:
    picture = padded(CONTENT[kind](seed), top, bottom, left, right)
    width = picture.shape[1]
    (x0, y0, x1, y1), (turned,) = crops([picture])[0], crops([picture[:, ::-1]])
    assert turned == pytest.approx((width - x1, y0, width - x0, y1), abs=1)


def test_a_white_sky_is_no_bar_and_white_bars_are() -> None:
    for seed in range(8):
        assert crops([coast(seed)]) == [(0, 0, 256, 144)]
        assert crops([padded(coast(seed), 20, 20, level=255)]) == [(0, 20, 256, 164)]
        assert crops([padded(small(seed), 0, 0, 30, 30, level=255)]) == [(30, 0, 286, 144)]


def test_an_edge_in_the_dark_is_where_the_other_side_has_it() -> None:
    for seed in range(8):
        assert crops([padded(evening(seed), 24, 24)]) == [(0, 24, 256, 168)]
    # Where the other side is no bar, only an edge through most of the picture is one.
    half = small(1)
    half[100:, :128] = 0
    assert crops([padded(half, 0, 24)]) == [(0, 0, 256, 168)]
    assert crops([padded(small(1), 0, 24)]) == [(0, 0, 256, 144)]


def test_a_white_sky_is_not_the_other_half_of_a_black_bar() -> None:
    assert crops([padded(coast(1), 0, 20)]) == [(0, 0, 256, 144)]


def test_what_stands_in_the_middle_of_a_plain_picture_is_not_cropped_to() -> None:
    card = np.zeros((144, 256), np.uint8)
    card[60:84, 100:160] = 200
    assert crops([card]) == [(0, 0, 256, 144)]
    square = np.full((144, 256), 30, np.uint8)
    square[40:104, 60:200] = 220
    assert crops([square]) == [(0, 0, 256, 144)]


def test_a_floor_in_the_shade_is_no_bar() -> None:
    room = small(1)
    room[126:] = 30
    assert crops([room]) == [(0, 0, 256, 144)]
    assert crops([padded(room, 24, 24)]) == [(0, 24, 256, 168)]


def test_ringing_on_one_side_hides_no_bar() -> None:
    ringing = padded(evening(3), 24, 24)
    ringing[21:24, 60:180:2] = 20
    assert crops([ringing]) == [(0, 24, 256, 168)]


def test_a_dark_shot_has_the_bars_of_the_others() -> None:
    def film(bar: int) -> list[list[Pixels]]:
        return [
            [padded(picture, bar, bar) for picture in shot] for shot in ([small(1), small(2)], [night(3)], [small(4)])
        ]

    assert crops(*film(0)) == [(0, 0, 256, 144)] * 3
    assert crops(*film(24)) == [(0, 24, 256, 168)] * 3
    # Alone it tells nothing, and nothing of it is cut off.
    assert crops(film(24)[1]) == [(0, 0, 256, 192)]
    assert crops([np.zeros((192, 256), np.uint8)], film(24)[0])[0] == (0, 24, 256, 168)


def test_a_shot_that_shows_something_there_has_no_bars() -> None:
    bars, none = [padded(small(1), 24, 24)] * 9, [small(5)]
    none = [np.asarray(cv2.resize(picture, (256, 192)), np.uint8) for picture in none]
    assert crops(bars, none) == [(0, 24, 256, 168), (0, 0, 256, 192)]
    lamp = padded(night(3), 24, 24)
    lamp[10:14, 100:110] = 200
    assert crops(bars, [lamp])[1] == (0, 0, 256, 192)


def test_of_two_formats_a_dark_shot_has_the_one_that_is_seen_more() -> None:
    wide, tall = [padded(small(1), 24, 24), padded(small(2), 24, 24)], [padded(small(3)[:132], 30, 30)]
    dark = [padded(night(4)[:132], 30, 30)]
    boxes = {"wide": (0, 24, 256, 168), "tall": (0, 30, 256, 162)}
    assert crops(wide, tall, dark)[2] == boxes["wide"]
    assert crops(dark, tall, wide, tall * 1, tall)[0] == boxes["tall"]
    assert crops(wide, tall, dark)[:2] == list(boxes.values())


@settings(max_examples=30)
@given(st.permutations(range(5)))
def test_the_order_of_shots_changes_nothing(order: list[int]) -> None:
    shots = [[padded(picture, 24, 24)] for picture in (small(1), night(2), small(3), night(4), coast(5))]
    assert crops(*[shots[i] for i in order]) == [crops(*shots)[i] for i in order]


def test_a_subtitle_over_the_end_of_one_bar_leaves_it_where_the_other_ends() -> None:
    titled = padded(small(1), 24, 24)
    titled[164:176, 40:216:2] = 235
    assert crops([padded(small(2), 24, 24), titled]) == [(0, 24, 256, 168)]
