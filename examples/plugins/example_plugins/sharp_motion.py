"""score.sharp_motion: how fast a clip moves while its images stay sharp."""

import io
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipelines.engine.step import Context, Step, TableFunction, column, map_rows

WRITES = (
    column("blur", pa.float64(), "blur of the images, mean over them: 0 is sharp, 1 has no edge (Crete et al. 2007)"),
    column("sharp_motion", pa.float64(), "motion x (1 - blur), in long sides per second; null for an image"),
)


class SharpMotion(Step):
    """Measures the blur of a clip's images, and weighs the clip's motion with it.

    The clips that teach a model motion are those that move and are sharp. A bound on `motion` alone also keeps
    clips that a fast camera has smeared, and a bound on `sharpness` alone also keeps stills.
    """

    name: str = "score.sharp_motion"
    images: Literal["frames", "thumbnails"] = Field(
        "frames", description="Column of images that are measured: those of step frames, or the thumbnails of scan."
    )
    window: int = Field(
        11, ge=3, le=31, description="Pixels of the low-pass filter; motion blur of this length counts as full blur."
    )

    def reads(self) -> tuple[str, ...]:
        """Return the column of images and the measured motion."""
        return (self.images, "motion")

    def writes(self) -> tuple[pa.Field, ...]:
        """Return the two columns that are added."""
        return WRITES

    def open(self, context: Context) -> TableFunction:
        """Return the function that measures the rows of a table. Nothing has to be loaded."""

        def measure(row: dict[str, Any]) -> dict[str, float | None]:
            blur = float(np.mean([blur_effect(luma(jpeg), self.window) for jpeg in row[self.images]]))
            motion = row["motion"]
            return {"blur": blur, "sharp_motion": None if motion is None else motion * (1 - blur)}

        return lambda table: map_rows(table, WRITES, measure)


def luma(jpeg: bytes) -> NDArray[np.float64]:
    """Return the luma [H, W] of a JPEG file, in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), dtype=np.float64) / 255


def blur_effect(luma_HW: NDArray[np.float64], window: int) -> float:
    """Return how little a low-pass filter changes the steps between neighbouring pixels, in the axis that is worse.

    A sharp image loses most of its steps in the filter. A blurred image has lost them already. Motion blurs along one
    axis only, so the worse axis counts and not the mean of both.
    """
    return max(_blur_along_columns(luma_HW, window), _blur_along_columns(luma_HW.T, window))


def _blur_along_columns(luma_HW: NDArray[np.float64], window: int) -> float:
    before = window // 2
    padded = np.pad(luma_HW, ((before + 1, window - 1 - before), (0, 0)), mode="edge")
    sums = np.cumsum(padded, axis=0)
    filtered = (sums[window:] - sums[:-window]) / window
    steps = np.abs(np.diff(luma_HW, axis=0))
    lost = np.maximum(steps - np.abs(np.diff(filtered, axis=0)), 0)
    total = steps.sum()
    return float(1 - lost.sum() / total) if total > 0 else 1.0
