"""score.people: nudity and faces, from one pass of one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.arrays import Pixels
from pipelines.engine.step import column
from pipelines.steps.score._base import Predictor
from pipelines.steps.score._onnx import OnnxScore
from pipelines.steps.score._people import Detections, detections_of, to_input

WRITES = (
    column(
        "nsfw",
        pa.float64(),
        "highest score of an uncovered part of a body in any of the images, in [0, 1]",
        within=(0, 1),
    ),
    column("faces", pa.int64(), "largest number of faces in one image", within=(0, None)),
    column("face_area", pa.float64(), "share of the image under faces, mean over the images, in [0, 1]", within=(0, 1)),
)


class People(OnnxScore):
    """Scores nudity, and counts and measures faces, with NudeNet's detector.

    One step writes both, because one pass of the network finds both.
    """

    packaged_file: ClassVar[tuple[str, ...]] = ("nudenet", "320n.onnx")
    extra: ClassVar[str] = "people"

    name: str = "score.people"
    model: str = Field(
        "",
        description="ONNX file of another detector with NudeNet's classes; by default the one in the package nudenet.",
    )
    confidence: float = Field(0.4, ge=0, le=1, description="Lowest score of a face that counts; nsfw has no bound.")

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def load(self) -> Predictor:
        network = self.load_network()

        def predict(images: Sequence[Pixels]) -> list[Detections]:
            outputs = network([to_input(image) for image in images])
            return [
                detections_of(output, image.shape[0], image.shape[1], self.confidence)
                for output, image in zip(outputs, images, strict=True)
            ]

        return predict

    def aggregate(self, row: Mapping[str, Any], results: Sequence[Detections]) -> dict[str, float | int]:
        return {
            "nsfw": max(result.nsfw for result in results),
            "faces": max(len(result.face_areas) for result in results),
            "face_area": float(np.mean([min(1.0, sum(result.face_areas)) for result in results])),
        }
