"""score.sharp_motion: how fast a clip moves while its frames stay sharp."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipelines.engine.step import Context, Step, TableFunction, column, map_rows

WRITES = (
    column("blur", pa.float64(), "blur, mean over the frames: 0 is sharp, 1 has no edge (Crete et al. 2007)"),
    column("sharp_motion", pa.float64(), "motion x (1 - blur), in long sides per second; null for an image"),
)


class SharpMotion(Step):
    """Measures the blur of a clip's frames, and weighs the clip's motion with it.

    Clips that move and are sharp teach a model motion. A bound on `motion` alone also keeps clips that a fast camera
    has smeared, and a bound on `sharpness` alone also keeps clips without motion.
    """

    name: str = "score.sharp_motion"
    window: int = Field(
        11, ge=3, le=31, description="Length of the low-pass filter in pixels; longer blurs are not told apart."
    )

    def reads(self) -> tuple[str, ...]:
        """Return the frames and the motion that scan measured."""
        return ("frames", "motion")

    def writes(self) -> tuple[pa.Field, ...]:
        """Return the two columns that the step adds."""
        return WRITES

    def open(self, context: Context) -> TableFunction:
        """Return the function that measures the rows of a table. The step has no weights to load."""

        def measure(row: dict[str, Any]) -> dict[str, float | None]:
            blur = float(np.mean([blur_effect(luma(jpeg), self.window) for jpeg in row["frames"]]))
            motion = row["motion"]
            return {"blur": blur, "sharp_motion": None if motion is None else motion * (1 - blur)}

        return lambda table: map_rows(table, WRITES, measure)


def luma(jpeg: bytes) -> NDArray[np.float64]:
    """Return the luma `[H, W]` of a JPEG file, in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("L"), dtype=np.float64) / 255


def blur_effect(luma_HW: NDArray[np.float64], window: int) -> float:
    """Return the blur of an image, in [0, 1], along the axis that is more blurred (Crete et al. 2007).

    Blurring a sharp image removes most differences between neighbouring pixels. A blurred image has lost them already.
    Motion blurs along its own direction only, so the mean of both axes would hide half of it.
    """
    return max(_blur_along_rows(luma_HW, window), _blur_along_rows(luma_HW.T, window))


def _blur_along_rows(luma_HW: NDArray[np.float64], window: int) -> float:
    """Return the share of the differences between adjacent rows that a mean over `window` rows leaves; 1 if none."""
    before = window // 2
    padded = np.pad(luma_HW, ((before + 1, window - 1 - before), (0, 0)), mode="edge")
    sums = np.cumsum(padded, axis=0)
    means = (sums[window:] - sums[:-window]) / window
    differences = np.abs(np.diff(luma_HW, axis=0))
    removed = np.maximum(differences - np.abs(np.diff(means, axis=0)), 0)
    total = differences.sum()
    return float(1 - removed.sum() / total) if total > 0 else 1.0
