"""score.text_area: how much of the picture is under text, and how much of that stays where it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from cluster import weight_files
from pipelines.engine.step import column
from pipelines.steps.score._base import Look, PictureScore
from pipelines.steps.score._onnx import load_network
from pipelines.steps.score._text import Text, area, boxes_of, input_size, staying, to_input
from pipelines.video.scale import Pixels

PACKAGED = ("rapidocr", "models", "PP-OCRv6_det_small.onnx")

WRITES = (
    column("text_area", pa.float64(), "share of the picture under text, mean over the pictures, in [0, 1]"),
    column(
        "text_area_stable",
        pa.float64(),
        "part of text_area whose text is at its place in the picture before or after too; null for one picture",
    ),
    column("text_area_moving", pa.float64(), "the rest of text_area; null where there is one picture only"),
)


class TextArea(PictureScore):
    """Share of the picture under text, found by PP-OCR's detector (nothing is read).

    Text that stays while the picture around it moves was put over it: subtitles, logos, titles. In a shot without any motion a
    sign in the street stays as well; nobody can tell these two apart by place alone.
    """

    name: str = "score.text_area"
    not_in_digest: ClassVar[frozenset[str]] = PictureScore.not_in_digest | {"model"}

    model: str = Field(
        "", description="ONNX file of another PP-OCR detector; by default the one in the package rapidocr."
    )
    input_px: int = Field(
        448,
        ge=64,
        le=4096,
        description="Long side of the network's input in pixels; smaller pictures are not enlarged.",
    )
    confidence: float = Field(
        0.5, ge=0, le=1, description="Mean probability of text from which a box counts that is long, as a line is."
    )
    confidence_square: float = Field(
        0.7, ge=0, le=1, description="The same for boxes that are not: a face may have 0.65."
    )

    _absolute = field_validator("model")(weight_files.absolute)

    def packages(self) -> Mapping[str, str]:
        return {"onnxruntime": "scores"} | ({} if self.model else {"rapidocr": "scores"})

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return weight_files.identity(self._path())

    def load(self) -> Look:
        network = load_network(self._path(), self.gpus, self.at_once)

        def look(pictures: Sequence[Pixels]) -> list[Text]:
            of_size: dict[tuple[int, int], list[int]] = defaultdict(list)
            for i, picture in enumerate(pictures):
                of_size[input_size(picture.shape[0], picture.shape[1], self.input_px)].append(i)
            found: dict[int, Text] = {}
            for size, numbers in of_size.items():
                maps = network([to_input(pictures[i], size) for i in numbers])
                found |= {
                    i: boxes_of(probability[0]).over(self.confidence, self.confidence_square)
                    for i, probability in zip(numbers, maps, strict=True)
                }
            return [found[i] for i in range(len(pictures))]

        return look

    def sum_up(self, row: Mapping[str, Any], seen: Sequence[Text]) -> dict[str, float]:
        total = float(np.mean([area(text.masks(), text.shape) for text in seen]))
        if len(seen) == 1:
            return {"text_area": total}
        kept = [
            [mask for mask, stays in zip(text.masks(), here, strict=True) if stays]
            for text, here in zip(seen, staying(seen), strict=True)
        ]
        stable = float(np.mean([area(masks, text.shape) for masks, text in zip(kept, seen, strict=True)]))
        return {"text_area": total, "text_area_stable": stable, "text_area_moving": total - stable}

    def _path(self) -> str:
        return self.model or str(weight_files.packaged(*PACKAGED))
