"""Orientation: the eight display matrices, in every place where frames become upright."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.arrays import Pixels, UInt8Array
from pipelines.export.clip_files import CutSettings, cut_video
from pipelines.video.decode import probe, read_frames
from pipelines.video.frame_images import FrameSampling, images_of_spans
from pipelines.video.scan import scan_video
from pipelines.video.spans import FrameGrid, read_span
from tests.support.videos import LOSSLESS, encode

Matrix = tuple[int, int, int, int]

MATRICES: dict[str, Matrix] = {
    "upright": (1, 0, 0, 1),
    "flipped left to right": (-1, 0, 0, 1),
    "half turn": (-1, 0, 0, -1),
    "flipped top to bottom": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "quarter turn clockwise": (0, 1, -1, 0),
    "transposed over the other diagonal": (0, -1, -1, 0),
    "quarter turn counter-clockwise": (0, -1, 1, 0),
}
every_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())


def blocks() -> Pixels:
    """Draw an image `[64, 96, 3]` of coloured squares that no rotation or flip leaves as it was."""
    values = np.random.default_rng(3).integers(0, 256, (4, 6, 3))
    return np.kron(values, np.ones((16, 16, 1))).astype(np.uint8)


def displayed(image: UInt8Array, matrix: Matrix) -> UInt8Array:
    """Return an image with each pixel where the matrix shows it, moved as a whole so that none has an index below 0."""
    a, b, c, d = matrix
    y, x = np.indices(image.shape[:2])
    shown_x, shown_y = a * x + c * y, b * x + d * y
    shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
    output = np.empty((shown_y.max() + 1, shown_x.max() + 1, *image.shape[2:]), image.dtype)
    output[shown_y, shown_x] = image
    return output


@every_matrix
def test_frames_and_spans_are_upright(tmp_path: Path, matrix: Matrix) -> None:
    plain = encode(tmp_path / "plain.mp4", [blocks()] * 3, options=LOSSLESS)
    expected = displayed(next(read_frames(str(plain)))[1], matrix)
    path = str(encode(tmp_path / "a.mp4", [blocks()] * 3, options=LOSSLESS, matrix=matrix))
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert (info.coded_width, info.coded_height) == (96, 64)
    assert info.mirrored == (np.linalg.det(np.reshape(matrix, (2, 2))) < 0)
    assert all(np.array_equal(frame, expected) for _, frame in read_frames(path))
    grid = FrameGrid(fps=30, frames=2, width=info.width, height=info.height)
    assert all(np.array_equal(frame, expected) for frame in read_span(path, 0, 1 << 40, grid).frames)
    (images,) = images_of_spans(path, [(0, 3)], FrameSampling(long_side=96, quality=98))
    assert not isinstance(images, Exception)
    assert np.abs(np.asarray(Image.open(io.BytesIO(images.images[0])), int) - expected).mean() < 6


@every_matrix
@pytest.mark.parametrize("stream_copy", [True, False])
def test_exported_clips_are_upright(tmp_path: Path, matrix: Matrix, stream_copy: bool) -> None:
    plain = encode(tmp_path / "plain.mp4", [blocks()] * 3, options=LOSSLESS)
    expected = displayed(next(read_frames(str(plain)))[1], matrix)
    path = str(encode(tmp_path / "a.mp4", [blocks()] * 3, options=LOSSLESS, matrix=matrix))
    settings = CutSettings(stream_copy=stream_copy, crf=0, preset="ultrafast")
    cut = cut_video(path, 0, 1 << 40, tmp_path / "clip.mp4", settings)
    assert cut.mode == ("copied" if stream_copy else "encoded")
    assert (cut.height, cut.width) == expected.shape[:2]
    assert np.array_equal(next(read_frames(str(tmp_path / "clip.mp4")))[1], expected)


@pytest.mark.slow
@every_matrix
def test_scan_measures_frames_upright(tmp_path: Path, matrix: Matrix) -> None:
    path = str(encode(tmp_path / "a.mp4", [blocks()] * 8, options=LOSSLESS, matrix=matrix))
    upright = displayed(blocks(), matrix)
    (shot,), (expected,) = (
        scan_video(str(one)).shots for one in (path, encode(tmp_path / "b.mp4", [upright] * 8, options=LOSSLESS))
    )
    (scanned,), (shown,) = (
        [np.asarray(Image.open(io.BytesIO(taken.jpeg)), int) for taken in each.thumbnails] for each in (shot, expected)
    )
    assert np.abs(scanned - shown).mean() < 6
    for own, other in zip(shot.hashes, expected.hashes, strict=True):
        assert (own.phash ^ other.phash).bit_count() <= 4
