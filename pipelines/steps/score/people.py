"""score.people: nudity and faces, from one pass of one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from cluster import weight_files
from pipelines.engine.step import column
from pipelines.steps.score._base import Look, PictureScore
from pipelines.steps.score._onnx import load_network
from pipelines.steps.score._people import People as Found
from pipelines.steps.score._people import people_of, to_input
from pipelines.video.scale import Pixels

PACKAGED = ("nudenet", "320n.onnx")

WRITES = (
    column("nsfw", pa.float64(), "highest score of an uncovered part of a body in any of the pictures, in [0, 1]"),
    column("faces", pa.int64(), "faces in the picture that has the most"),
    column("face_area", pa.float64(), "share of the picture under faces, mean over the pictures, in [0, 1]"),
)


class People(PictureScore):
    """Nudity, and how many and how large the faces are, by NudeNet's detector.

    One step for both, because one pass of the network finds both.
    """

    name: str = "score.people"
    not_in_digest: ClassVar[frozenset[str]] = PictureScore.not_in_digest | {"model"}

    model: str = Field(
        "",
        description="ONNX file of another detector with NudeNet's classes; by default the one in the package nudenet.",
    )
    confidence: float = Field(0.4, ge=0, le=1, description="Score from which a face counts; nsfw is the score itself.")

    _absolute = field_validator("model")(weight_files.absolute)

    def packages(self) -> Mapping[str, str]:
        return {"onnxruntime": "people"} | ({} if self.model else {"nudenet": "people"})

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return weight_files.identity(self._path())

    def load(self) -> Look:
        network = load_network(self._path(), self.gpus, self.at_once)

        def look(pictures: Sequence[Pixels]) -> list[Found]:
            outputs = network([to_input(picture) for picture in pictures])
            found = zip(outputs, pictures, strict=True)
            return [people_of(output, picture.shape[0], picture.shape[1], self.confidence) for output, picture in found]

        return look

    def sum_up(self, row: Mapping[str, Any], seen: Sequence[Found]) -> dict[str, float | int]:
        return {
            "nsfw": max(found.nsfw for found in seen),
            "faces": max(len(found.faces) for found in seen),
            "face_area": float(np.mean([min(1.0, sum(found.faces)) for found in seen])),
        }

    def _path(self) -> str:
        return self.model or str(weight_files.packaged(*PACKAGED))
