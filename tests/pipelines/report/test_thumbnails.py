"""Thumbnails of the page: their number and size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.report.thumbnails import MAX_PER_CLIP, MAX_SIDE_PX, evenly_spaced, small_thumbnail
from tests.support.report_tables import jpeg


def test_thumbnails_are_evenly_spaced() -> None:
    assert evenly_spaced([b"a", b"b", b"c"], MAX_PER_CLIP) == [b"a", b"b", b"c"]
    assert evenly_spaced([bytes([i]) for i in range(9)], 3) == [b"\x00", b"\x04", b"\x08"]


def test_only_large_images_are_scaled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    handle = io.BytesIO()
    Image.fromarray(noise).save(handle, "JPEG")
    with Image.open(io.BytesIO(small_thumbnail(handle.getvalue()))) as scaled:
        assert max(scaled.size) <= MAX_SIDE_PX
    assert small_thumbnail(jpeg(9)) == jpeg(9)
    assert small_thumbnail(b"\xff" * 50_000) == b"\xff" * 50_000, "no image: unchanged"
