"""score.clip_text: whether a clip shows what its caption says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.engine.step import column
from pipelines.steps.score._clip import ClipScore, Floats, dot

CLIP_TEXT = column(
    "clip_text",
    pa.float64(),
    "100 x cosine of the caption and each picture, at least 0, mean over the pictures; 0 to 100",
)


class ClipText(ClipScore):
    """CLIPScore on the scale of 0 to 100: 100 max(cos, 0), the mean over the pictures (Hessel et al. 2021 multiply by 2.5 instead of 100).

    CLIP reads the first 77 tokens of a caption, about 50 words; what is said after them does not count.
    """

    name: str = "score.clip_text"

    def reads(self) -> tuple[str, ...]:
        return self.pictures, "caption"

    def writes(self) -> tuple[pa.Field, ...]:
        return (CLIP_TEXT,)

    def sum_up(self, row: Mapping[str, Any], seen: Sequence[Floats]) -> dict[str, float]:
        if not row["caption"]:
            raise ValueError("the clip has no caption")
        (text,) = self.tower().texts([row["caption"]])
        return {"clip_text": float(np.mean([100 * max(dot(text, picture), 0.0) for picture in seen]))}
