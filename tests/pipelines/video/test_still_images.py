"""Still images: orientation, transparency, every colour mode, damage, boxes and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.video.decode import DecodeError
from pipelines.video.still_images import encode_jpeg, fit_long_side, read_image, resize_image
from tests.support.images import quarters


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees
    sideways = np.rot90(quarters(), 1).copy()
    Image.fromarray(sideways).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    image = read_image(str(tmp_path / "a.jpg"))
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).astype(int)[4:20, 4:28] - (240, 20, 20)).max() < 12


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
