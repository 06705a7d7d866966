"""score.clip_text: how well a clip's caption describes its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.arrays import Float32Array
from pipelines.engine.step import column
from pipelines.steps.score._clip import ClipScore, dot

CLIP_TEXT = column(
    "clip_text",
    pa.float64(),
    "100 x cosine of the caption and each image, at least 0, mean over the images; 0 to 100",
    within=(0, 100),
)


class ClipText(ClipScore):
    """Computes CLIPScore on a scale of 0 to 100: 100 max(cos, 0), mean over the images.

    Hessel et al. 2021 multiply by 2.5 instead of 100. CLIP reads the first 77 tokens of a caption, about 50 words;
    later words do not count.
    """

    name: str = "score.clip_text"

    def reads(self) -> tuple[str, ...]:
        return self.images, "caption"

    def writes(self) -> tuple[pa.Field, ...]:
        return (CLIP_TEXT,)

    def aggregate(self, row: Mapping[str, Any], results: Sequence[Float32Array]) -> dict[str, float]:
        if not row["caption"]:
            raise ValueError("the clip has no caption")
        (text_D,) = self.clip_model().embed_texts([row["caption"]])
        return {"clip_text": float(np.mean([100 * max(dot(text_D, image_D), 0.0) for image_D in results]))}
