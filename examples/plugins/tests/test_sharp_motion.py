"""`score.sharp_motion` on drawn frames whose blur is known."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from example_plugins.sharp_motion import SharpMotion
from PIL import Image, ImageFilter

from pipelines.engine.step import Context, start_fates


def jpeg(image: Image.Image) -> bytes:
    """Return an image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def checks() -> Image.Image:
    """Return an image of squares of random colours, 5 pixels wide."""
    colours = np.random.default_rng(0).integers(0, 256, (18, 32, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(5, axis=0).repeat(5, axis=1))


def measure(frames: list[bytes], motion: float | None = 0.1) -> list[dict[str, Any]]:
    """Return the measured rows of clips of one frame each."""
    columns = {
        "uid": pa.array([str(i) for i in range(len(frames))]),
        "frames": pa.array([[frame] for frame in frames], pa.list_(pa.binary())),
        "motion": pa.array([motion] * len(frames), pa.float64()),
    }
    step = SharpMotion()
    measured = step.open(Context(tables_uri="", seed=0))(start_fates(pa.table(columns)))
    rows: list[dict[str, Any]] = measured.to_pylist()
    return rows


def test_blur_lowers_sharp_motion() -> None:
    radii = [0, 2, 5]
    rows = measure([jpeg(checks().filter(ImageFilter.BoxBlur(radius))) for radius in radii])
    blurs = [row["blur"] for row in rows]
    assert blurs == sorted(blurs)
    assert blurs[0] < 0.3
    assert blurs[2] > 0.5
    assert [row["sharp_motion"] for row in rows] == pytest.approx([0.1 * (1 - blur) for blur in blurs])


def test_blur_along_one_axis_counts_fully() -> None:
    pixels = np.asarray(checks(), dtype=float)
    smeared = Image.fromarray(np.mean([np.roll(pixels, shift, axis=1) for shift in range(11)], axis=0).astype(np.uint8))
    sharp, horizontal, vertical = measure(
        [jpeg(checks()), jpeg(smeared), jpeg(smeared.transpose(Image.Transpose.TRANSPOSE))]
    )
    assert horizontal["blur"] > sharp["blur"] + 0.25
    assert vertical["blur"] == pytest.approx(horizontal["blur"], abs=0.02)


def test_plain_frames_are_blurred() -> None:
    (row,) = measure([jpeg(Image.new("RGB", (32, 32), (90, 90, 90)))])
    assert (row["blur"], row["sharp_motion"]) == (1, 0)


def test_images_have_no_sharp_motion() -> None:
    (row,) = measure([jpeg(checks())], motion=None)
    assert row["blur"] < 0.3
    assert row["sharp_motion"] is None


def test_damaged_frames_fail_their_row_alone() -> None:
    rows = measure([b"no image", jpeg(checks())])
    assert [row["fate"] for row in rows] == ["failed", "kept"]
    assert rows[0]["fate_reason"].startswith("UnidentifiedImageError")
