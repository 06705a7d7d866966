"""Still images: orientation, transparency, every colour mode, damage, boxes and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from cluster.arrays import UInt8Array
from pipelines.video import still_images
from pipelines.video.decode import DecodeError
from pipelines.video.still_images import encode_jpeg, fit_long_side, is_still_image, read_image, resize_image
from tests.support.images import quarters


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees
    sideways = np.rot90(quarters(), 1).copy()
    Image.fromarray(sideways).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    image = read_image(str(tmp_path / "a.jpg"))
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).astype(int)[4:20, 4:28] - (240, 20, 20)).max() < 12


DISPLAYED: dict[int, Callable[[UInt8Array], UInt8Array]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
"""Image as displayed, by EXIF orientation."""


@pytest.mark.parametrize("orientation", DISPLAYED)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "avif", "jpg"])
def test_every_exif_orientation_is_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quarters()
    options = {"webp": {"lossless": True}, "avif": {"quality": 95, "subsampling": "4:4:4"}, "jpg": {"quality": 95}}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options.get(suffix, {}))
    image = np.asarray(read_image(str(tmp_path / f"a.{suffix}")), int)
    expected = DISPLAYED[orientation](stored)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 6


def test_transparent_parts_are_over_white(tmp_path: Path) -> None:
    layers = np.dstack([quarters(), np.full((48, 64), 255, np.uint8)])
    layers[:24, :32, 3] = 0
    Image.fromarray(layers).save(tmp_path / "a.png")
    image = np.asarray(read_image(str(tmp_path / "a.png")))
    assert tuple(image[5, 5]) == (255, 255, 255)
    assert tuple(image[5, 60]) == (20, 240, 20)


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 128), ("I;16", 128 << 8), ("1", True), ("CMYK", (0, 0, 0, 127)), ("P", 128)]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, value: object) -> None:
    if mode == "P":
        image = Image.new("L", (8, 8), 128).convert("P")
    elif mode == "I;16":
        image = Image.fromarray(np.full((8, 8), value, np.uint16))
    else:
        image = Image.new(mode, (8, 8), value)  # type: ignore[arg-type]
    path = tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 128)).max() <= 2


@pytest.mark.parametrize(
    ("dtype", "white", "suffix"),
    [
        (np.uint16, 65535, "png"),
        (np.uint16, 65535, "tiff"),
        (np.int32, 65535, "ppm"),
        (np.int32, 255, "tiff"),
        (np.int32, 65535, "tiff"),
        (np.int32, 2**31 - 1, "tiff"),
        (np.float32, 1, "tiff"),
        (np.float32, 255, "tiff"),
        (np.float32, 65535, "tiff"),
    ],
)
def test_greys_of_16_and_32_bits_keep_their_range(tmp_path: Path, dtype: type, white: int, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 1, 64), (8, 1))
    Image.fromarray((ramp * white).astype(dtype)).save(tmp_path / f"a.{suffix}")
    image = np.asarray(read_image(str(tmp_path / f"a.{suffix}")), int)
    brightest = 255 if white != 2**31 - 1 else 127.5
    assert np.abs(image - brightest * ramp[..., None]).max() <= 1


def test_greys_that_are_not_finite_are_black(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, -1
    Image.fromarray(values).save(tmp_path / "a.tiff")
    image = np.asarray(read_image(str(tmp_path / "a.tiff")))
    assert (image[0, :4] == 0).all()
    assert (image[1:] == 128).all()


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    path = tmp_path / "a.jpg"
    Image.fromarray(quarters()).save(path, "EPS")
    with pytest.raises(
        DecodeError, match=r"a\.jpg: UnidentifiedImageError: none of the formats that are read: JPEG, PNG"
    ):
        read_image(str(path))


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    """A file without content takes no space on the disk, and may still say that it has 50 GB."""
    path = tmp_path / "a.png"
    with path.open("wb") as handle:
        handle.truncate(50 << 30)
    with pytest.raises(DecodeError, match=r"a\.png: has 53,687,091,200 bytes; at most 536,870,912 are read"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "qoi", "jpg"])
def test_large_images_are_refused_undecoded(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still_images, "MAX_PIXELS", 64 * 48 - 1)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters()).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DecodeError, match=r"a\.\w+: ValueError: the image is 64x48, more than 3071 pixels; scale it down"
    ):
        read_image(str(path))


@pytest.mark.parametrize(
    ("suffix", "block"), [("png", "exif"), ("webp", "exif"), ("webp", "icc_profile"), ("tiff", "icc_profile")]
)
def test_large_metadata_is_refused(tmp_path: Path, suffix: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still_images, "MAX_METADATA_BYTES", 1000)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters()).save(path, **{block: b"Exif\0\0" + bytes(2000)})
    with pytest.raises(
        DecodeError, match=rf"a\.{suffix}: ValueError: {block} has 2,00\d bytes, more than 1,000; remove it"
    ):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif", "tiff"])
def test_first_image_of_several_is_read(tmp_path: Path, suffix: str) -> None:
    first, *others = [Image.new("RGB", (32, 32), (level,) * 3) for level in (40, 120, 200)]
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    assert np.abs(np.asarray(read_image(str(tmp_path / f"a.{suffix}")), int) - 40).max() <= 2
    assert is_still_image(str(tmp_path / f"a.{suffix}")) == (suffix == "tiff")


def test_still_images_are_known_by_content(tmp_path: Path) -> None:
    Image.fromarray(quarters()).save(tmp_path / "photo", "JPEG")
    (tmp_path / "text.png").write_bytes(b"no image")
    assert is_still_image(str(tmp_path / "photo"))
    assert not is_still_image(str(tmp_path / "text.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_damaged_images_fail_with_their_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DecodeError, match=rf"a\.{suffix}: \w+: "):
        read_image(str(path))


def test_boxes_and_sizes() -> None:
    image = Image.fromarray(quarters())
    part = resize_image(image, (32, 0, 64, 24), 16, 16)
    assert part.shape == (16, 16, 3)
    assert np.abs(part[4:-4, 4:-4].astype(int) - (20, 240, 20)).max() <= 2
    with pytest.raises(ValueError, match="is not inside the image of 64x48"):
        resize_image(image, (0, 0, 65, 48), 16, 16)
    assert encode_jpeg(quarters())[:2] == b"\xff\xd8"
    assert fit_long_side(64, 48, 32) == (32, 24)
