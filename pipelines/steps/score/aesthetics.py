"""score.aesthetics: how much people would like the look of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from cluster import weight_files
from cluster.arrays import Pixels
from cluster.weight_files import HUB_PREFIX
from pipelines.engine.step import column
from pipelines.steps.score import _head
from pipelines.steps.score._base import Predictor
from pipelines.steps.score._clip import ClipScore

AESTHETICS = column("aesthetics", pa.float64(), "LAION aesthetic score, about 1 (ugly) to 10, mean over the images")


class Aesthetics(ClipScore):
    """Scores images with LAION's aesthetic predictor: a linear head on CLIP embeddings, trained on people's ratings.

    The default is the head NVIDIA's curators use, on the CLIP model that it was trained on, OpenAI's ViT-L/14.
    """

    name: str = "score.aesthetics"
    not_in_digest: ClassVar[frozenset[str]] = ClipScore.not_in_digest | {"head", "head_revision"}

    head: str = Field(
        f"{HUB_PREFIX}ttj/sac-logos-ava1-l14-linearMSE/model.safetensors",
        description="Weights of the head: a .safetensors, .pth or .pt file, or hf-hub:owner/name/file.",
    )
    head_revision: str = Field(
        "1e77fa05081323d99725fc40a9bf9f88180490e7", min_length=1, description="Commit of the head on the hub."
    )

    _absolute_head = field_validator("head")(weight_files.absolute)

    @field_validator("head")
    @classmethod
    def _check_head(cls, head: str) -> str:
        if head.startswith(HUB_PREFIX) and head.count("/") < 2:
            raise ValueError(f"{head} names no file: write hf-hub:owner/name/file")
        return head

    def writes(self) -> tuple[pa.Field, ...]:
        return (AESTHETICS,)

    def weights(self) -> str:
        on_hub = self.head.startswith(HUB_PREFIX)
        head = f"{self.head}@{self.head_revision}" if on_hub else weight_files.identity(self.head)
        return f"{super().weights()} {head}"

    def load(self) -> Predictor:
        clip_model = self.clip_model()
        head = _head.load_head(_head.fetch(self.head, self.head_revision), clip_model.dim, self.model)

        def predict(images: Sequence[Pixels]) -> list[float]:
            return [head(embedding) for embedding in clip_model.embed_images(images)]

        return predict

    def aggregate(self, row: Mapping[str, Any], results: Sequence[float]) -> dict[str, float]:
        return {"aesthetics": float(np.mean(results))}
