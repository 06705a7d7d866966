"""Colour profiles: images become sRGB, against the formulas of the colour spaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cluster.arrays import UInt8Array
from pipelines.export.clip_files import cut_image
from pipelines.video.still_images import read_image
from tests.support.colour_profiles import (
    ADOBE_XYZ,
    SRGB_XYZ,
    cmyk_profile,
    grey_profile,
    rgb_profile,
    srgb_of_linear,
    srgb_of_rgb,
)


def colours() -> UInt8Array:
    """Return an image `[16, 32, 3]` of moderate colours, which sRGB holds too."""
    return np.random.default_rng(0).integers(60, 200, (16, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "avif", "jpg"])
def test_rgb_profile_is_converted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    flat = np.full((16, 16, 3), (90, 160, 120), np.uint8)
    options = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}, "jpg": {"quality": 100}}
    Image.fromarray(flat).save(path, icc_profile=rgb_profile(ADOBE_XYZ, 2.2), **options.get(suffix, {}))
    expected = srgb_of_rgb(flat, ADOBE_XYZ, 2.2)
    assert np.abs(flat - expected).max() > 20
    assert np.abs(np.asarray(read_image(str(path))) - expected).max() <= (4 if suffix in ("avif", "jpg") else 2)


def test_alpha_and_palette_images_are_converted(tmp_path: Path) -> None:
    profile = rgb_profile(ADOBE_XYZ, 2.2)
    expected = srgb_of_rgb(colours(), ADOBE_XYZ, 2.2)
    alpha = np.full((16, 32, 1), 255, np.uint8)
    alpha[:8] = 0
    Image.fromarray(np.concatenate([colours(), alpha], 2)).save(tmp_path / "alpha.png", icc_profile=profile)
    image = np.asarray(read_image(str(tmp_path / "alpha.png")))
    assert np.abs(image[8:] - expected[8:]).max() <= 2
    assert (image[:8] == 255).all()
    few = Image.fromarray(colours()).quantize(16)
    few.save(tmp_path / "few.png", icc_profile=profile)
    assert (few.mode, Image.open(tmp_path / "few.png").mode) == ("P", "P")
    expected = srgb_of_rgb(np.asarray(few.convert("RGB")), ADOBE_XYZ, 2.2)
    assert np.abs(np.asarray(read_image(str(tmp_path / "few.png"))) - expected).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_profile_is_converted(tmp_path: Path, bits: int) -> None:
    values = np.tile(np.arange(10, 250, dtype=np.uint8), (8, 1))
    stored = values if bits == 8 else values.astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    expected = srgb_of_linear(values / 255.0)[..., None]
    assert np.abs(np.asarray(read_image(str(tmp_path / "a.png"))) - expected).max() <= 2


def test_grey_image_takes_the_profile_of_its_original(tmp_path: Path) -> None:
    values = np.tile(np.arange(10, 250, dtype=np.uint8), (8, 1))
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=rgb_profile(SRGB_XYZ, 1.0))
    expected = srgb_of_linear(values / 255.0)[..., None]
    assert np.abs(np.asarray(read_image(str(tmp_path / "a.png"))) - expected).max() <= 2


def test_cmyk_profile_is_converted(tmp_path: Path) -> None:
    corners = np.empty((2, 2, 2, 2, 3), np.uint8)
    corners[..., 0], corners[..., 1:] = 0, 128  # black with any other ink
    corners[0, 0, 0, 0] = 255, 128, 128
    corners[1, 0, 0, 0] = 128, 118, 108  # CIELAB 50, -10, -20: cyan ink
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.tiff", icc_profile=cmyk_profile(corners))
    pixel = np.asarray(read_image(str(tmp_path / "a.tiff")), int)[4, 4]
    expected = np.asarray(read_image(_lab_file(tmp_path, (128, -10, -20))), int)[4, 4]
    assert np.abs(pixel - expected).max() <= 2
    assert np.abs(pixel - (0, 255, 255)).max() > 50  # what the conversion without the profile gives


def _lab_file(folder: Path, lab: tuple[int, int, int]) -> str:
    values = np.full((8, 8, 3), lab, np.int16).astype(np.uint8)
    Image.frombytes("LAB", (8, 8), values.tobytes()).save(folder / "lab.tiff")
    return str(folder / "lab.tiff")


def test_cielab_is_converted(tmp_path: Path) -> None:
    image = np.asarray(read_image(_lab_file(tmp_path, (136, 0, 0))))
    light = ((136 * 100 / 255 + 16) / 116) ** 3
    assert np.abs(image - srgb_of_linear(np.array(light))).max() <= 2


@pytest.mark.parametrize("profile", [b"no profile", grey_profile(1.0), rgb_profile(ADOBE_XYZ, 2.2)[:200]])
def test_profile_that_does_not_fit_is_ignored(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.png"))), colours())


def test_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.png"))), image)


def test_exported_image_is_converted_once(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.tiff", icc_profile=rgb_profile(ADOBE_XYZ, 2.2))
    assert cut_image(str(tmp_path / "a.tiff"), tmp_path / "b.png").mode == "encoded"
    again = np.asarray(read_image(str(tmp_path / "b.png")))
    assert np.array_equal(again, np.asarray(read_image(str(tmp_path / "a.tiff"))))
