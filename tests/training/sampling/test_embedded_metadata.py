"""Metadata in files: found in every container, added without a change of pixels, harmless in damaged files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.commands._media import read_frames
from tests.training.sampling.test_media import moving_gradient
from training.sampling.embedded_metadata import add_xmp, blocks
from training.sampling.media import write_png, write_video
from training.sampling.source_type import COMPOSITE, GENERATED, says_generated, source_types, xmp_packet

SUFFIXES = ("mp4", "gif", "webp", "png", "jpg")


def write_media(path: Path) -> Path:
    """Write a file in the format of its suffix."""
    if path.suffix == ".png":
        write_png(str(path), moving_gradient()[0])
    elif path.suffix == ".jpg":
        Image.fromarray(moving_gradient()[0]).save(path)
    else:
        write_video(str(path), moving_gradient(), 8)
    return path


def shown(path: Path) -> list[bytes]:
    """Return the pixels of each frame."""
    if path.suffix != ".jpg":
        return [frame.tobytes() for frame in read_frames(str(path))]
    with Image.open(path) as image:
        return [np.asarray(image).tobytes()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_xmp_is_added_and_found(suffix: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / f"a.{suffix}")
    with path.open("rb") as file:
        assert source_types(file) == {}
        assert not says_generated(file)
    before, packet = shown(path), xmp_packet(COMPOSITE, "worldloom 1")
    add_xmp(path, packet)
    assert shown(path) == before
    with path.open("rb") as file:
        assert [(block.kind, block.data) for block in blocks(file)] == [("xmp", packet)]
        assert source_types(file) == {"xmp": ["compositeWithTrainedAlgorithmicMedia"]}
        assert says_generated(file)
    if suffix in ("png", "webp", "jpg"):
        with Image.open(path) as image:
            image.load()
            assert image.info["xmp"] == packet, "another reader finds it"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_have_fewer_blocks(suffix: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / f"a.{suffix}")
    add_xmp(path, xmp_packet(GENERATED, "worldloom"))
    data = path.read_bytes()
    for end in (*range(40), *range(40, len(data), 97)):
        list(blocks(io.BytesIO(data[:end])))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        list(blocks(io.BytesIO(bytes(damaged))))


def test_other_files_have_no_blocks(tmp_path: Path) -> None:
    for data in (b"", b"x", b"RIFF\0\0\0\0WAVE", b"plain text that is longer than a header"):
        assert list(blocks(io.BytesIO(data))) == []
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: XMP is added to mp4, png, gif, webp, jpg"):
        add_xmp(tmp_path / "a.txt", b"x")
