from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_motion import texture

from pipelines.video.letterbox import borders, crop_box
from pipelines.video.look import GRID, Look, blockiness, colourfulness, noise_sigma, take_look
from pipelines.video.scale import Pixels

GREY = np.full((72, 128), 128, np.uint8)


def look(luma: Pixels, native: np.ndarray | None = None, cb: Pixels = GREY, cr: Pixels = GREY) -> Look:
    return take_look(0, luma, cb, cr, native, True)


def jpeg(picture: Pixels, quality: int) -> Pixels:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE), np.uint8)


def test_luma_contrast_and_clipping_of_known_pictures() -> None:
    half = np.zeros((144, 256), np.uint8)
    half[:, 128:] = 255
    seen = look(half)
    assert (seen.luma, seen.contrast, seen.clipped_black, seen.clipped_white) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 144, axis=0)
    seen = look(ramp)
    assert (seen.clipped_black, seen.clipped_white) == pytest.approx((3 / 256, 3 / 256))
    assert (seen.sharpness, seen.colourfulness, seen.noise, seen.blockiness) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-4), None, None)


def hasler(rgb: np.ndarray) -> float:
    """Colourfulness as its authors give it, of `[H, W, 3]` RGB."""
    r, g, b = rgb.reshape(-1, 3).astype(float).T
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, (18, 32, 3), elements=st.integers(20, 235)))
def test_colourfulness_is_that_of_its_authors(rgb: np.ndarray) -> None:
    ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    # OpenCV's YCrCb is BT.601 of full range, as in JPEG.
    assert colourfulness(np.ascontiguousarray(ycc[..., 2]), np.ascontiguousarray(ycc[..., 1])) == pytest.approx(hasler(rgb), rel=0.02, abs=1.0)


def tiles(picture: np.ndarray) -> np.ndarray:
    """All tiles of 32 x 32 of a picture, stacked."""
    rows, columns = picture.shape[0] // 32, picture.shape[1] // 32
    return np.ascontiguousarray(picture.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32))


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4, 8])
def test_noise_is_measured_in_levels_in_flat_and_in_textured_pictures(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (np.full((256, 256), 90.0), texture(0)[:256, :256].astype(float), np.tile(np.arange(256.0), (256, 1)) * 0.7 + 30):
        noisy = np.clip(np.rint(clean + rng.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)
        # Rounding to whole levels is noise too: 0.29 levels.
        assert noise_sigma(tiles(noisy)) == pytest.approx(np.hypot(sigma, 0.29), rel=0.15, abs=0.1)


def test_texture_is_no_noise_where_there_is_something_flat() -> None:
    rng = np.random.default_rng(1)
    picture = np.full((256, 256), 120.0)
    picture[:, 96:] = rng.choice([40, 200], (256, 160))
    noisy = np.clip(np.rint(picture + rng.normal(0, 1.5, picture.shape)), 0, 255).astype(np.uint8)
    assert noise_sigma(tiles(noisy)) == pytest.approx(1.5, rel=0.15)


def test_clipped_black_hides_no_noise() -> None:
    rng = np.random.default_rng(2)
    picture = np.where(np.arange(256)[None] < 128, -40.0, 120.0) + rng.normal(0, 2, (256, 256))
    assert noise_sigma(tiles(np.clip(np.rint(picture), 0, 255).astype(np.uint8))) == pytest.approx(2, rel=0.15)
    assert noise_sigma(np.zeros((320, 32), np.uint8)) == 0.0


def naive_blockiness(picture: np.ndarray) -> float:
    """Steps on the grid over steps in the middle of blocks, as loops, of a picture of whole tiles."""
    on, off = [], []
    for lines in (tiles(picture), tiles(picture.T)):
        for line in lines.astype(int):
            for i in range(31):
                step = min(abs(line[i + 1] - line[i]), 16)
                if i % GRID == 7:
                    on.append(step)
                elif 1 <= i % GRID <= 5:
                    off.append(step)
    return float((np.mean(on) + 0.05) / (np.mean(off) + 0.05))


@pytest.mark.parametrize("quality", [5, 20, 95])
def test_blockiness_is_that_of_the_definition(quality: int) -> None:
    picture = jpeg(texture(3)[:128, :128], quality)
    # The tiles of the transpose are other tiles, but the same lines.
    assert blockiness(tiles(picture)) == pytest.approx(naive_blockiness(picture), rel=1e-3)


def test_blockiness_rises_with_compression_and_is_one_without() -> None:
    picture = texture(4)[:512, :512]
    values = [blockiness(tiles(jpeg(picture, quality))) for quality in (95, 50, 20, 8)]
    assert blockiness(tiles(picture)) == pytest.approx(1, abs=0.05)
    assert values == sorted(values)
    assert values[0] < 1.15
    assert values[-1] > 2
    # Off the grid they are not seen; a flat picture has none.
    assert blockiness(tiles(jpeg(texture(4)[:516, :516], 8)[4:, 4:])) < 1.1
    assert blockiness(np.full((320, 32), 80, np.uint8)) == 1.0


def test_ten_bits_strides_and_sizes_measure_alike() -> None:
    rng = np.random.default_rng(5)
    native = np.clip(texture(5) + rng.normal(0, 3, (720, 1280)), 16, 235).astype(np.uint8)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    eight = look(luma, native)
    ten = look(luma, native.astype(np.uint16) * 4)
    padded = np.zeros((720, 1344), np.uint8)
    padded[:, :1280] = native
    assert look(luma, padded[:, :1280]) == eight
    assert eight.noise is not None
    assert eight.blockiness is not None
    assert eight.noise == pytest.approx(3, rel=0.1)
    assert (ten.noise, ten.blockiness) == pytest.approx((eight.noise, eight.blockiness), rel=0.01)
    tiny = look(luma, native[:20, :400])
    assert (tiny.noise, tiny.blockiness) == (None, None)
    assert look(luma, native[:33, :40]).noise is not None


def boxed(picture: Pixels, top: int, bottom: int, left: int = 0, right: int = 0, level: int = 0) -> Pixels:
    """A picture of 1280 x 720 with bars of these many pixels, looked at."""
    frame = np.full((720, 1280), level, np.uint8)
    inner = cv2.resize(picture, (1280 - left - right, 720 - top - bottom), interpolation=cv2.INTER_AREA)
    frame[top : 720 - bottom, left : 1280 - right] = inner
    return np.asarray(cv2.resize(frame, (256, 144), interpolation=cv2.INTER_AREA), np.uint8)


def box_of(*pictures: Pixels) -> tuple[int, int, int, int]:
    return crop_box([borders(picture) for picture in pictures], 1280, 720)


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


@settings(deadline=None, max_examples=25)
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


def test_a_look_is_deterministic() -> None:
    native = texture(9)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    assert look(luma, native) == look(luma.copy(), native.copy())
