"""score.text_area: the share of the image under text, and how much of that text stays in one position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.arrays import BoolArray, Pixels
from pipelines.engine.step import column
from pipelines.steps.score._base import Predictor
from pipelines.steps.score._onnx import OnnxScore
from pipelines.steps.score._text import Text, boxes_of, covered_share, input_size, stable_masks, to_input

WRITES = (
    column("text_area", pa.float64(), "share of the image under text, mean over the images, in [0, 1]", within=(0, 1)),
    column(
        "text_area_stable",
        pa.float64(),
        "part of text_area whose text has the same position in the image before or after; null for a single image",
        within=(0, 1),
    ),
    column("text_area_moving", pa.float64(), "the rest of text_area; null for a single image", within=(0, 1)),
)


class TextArea(OnnxScore):
    """Scores the share of the image under text, which PP-OCR's detector finds (nothing is read).

    Text that stays while the scene around it moves was overlaid: subtitles, logos, titles. In a shot without motion a
    street sign stays as well, and its position alone does not tell it from an overlay.
    """

    packaged_file: ClassVar[tuple[str, ...]] = ("rapidocr", "models", "PP-OCRv6_det_small.onnx")
    extra: ClassVar[str] = "scores"

    name: str = "score.text_area"
    model: str = Field(
        "", description="ONNX file of another PP-OCR detector; by default the one in the package rapidocr."
    )
    input_px: int = Field(
        448,
        ge=64,
        le=4096,
        description="Long side of the network's input in pixels; smaller images are not enlarged.",
    )
    confidence: float = Field(
        0.5, ge=0, le=1, description="Lowest mean probability of a box that counts, where it is long as a line is."
    )
    confidence_square: float = Field(
        0.7, ge=0, le=1, description="Lowest mean probability of any other box that counts: a face may have 0.65."
    )

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def load(self) -> Predictor:
        network = self.load_network()

        def predict(images: Sequence[Pixels]) -> list[Text]:
            indices_by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
            for i, image in enumerate(images):
                indices_by_size[input_size(image.shape[0], image.shape[1], self.input_px)].append(i)
            found: dict[int, Text] = {}
            for size, indices in indices_by_size.items():
                maps = network([to_input(images[i], size) for i in indices])
                found |= {
                    i: boxes_of(probability[0]).over(self.confidence, self.confidence_square)
                    for i, probability in zip(indices, maps, strict=True)
                }
            return [found[i] for i in range(len(images))]

        return predict

    def aggregate(self, row: Mapping[str, Any], results: Sequence[Text]) -> dict[str, float]:
        total = _mean_share([text.masks() for text in results], results)
        if len(results) == 1:
            return {"text_area": total}
        stable = _mean_share(stable_masks(results), results)
        return {"text_area": total, "text_area_stable": stable, "text_area_moving": total - stable}


def _mean_share(masks: Sequence[Sequence[BoolArray]], texts: Sequence[Text]) -> float:
    """Return the share of the image under the masks of each image, mean over the images."""
    return float(np.mean([covered_share(found, text.shape) for found, text in zip(masks, texts, strict=True)]))
