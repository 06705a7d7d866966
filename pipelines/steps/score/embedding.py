"""score.embedding: one vector for the content of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.arrays import Float32Array
from pipelines.engine.segments import HEAVY
from pipelines.steps.score._clip import ClipScore, unit_rows

EMBEDDING = pa.field(
    "embedding",
    pa.list_(pa.float32()),
    metadata={"doc": "unit vector of the clip's content: mean over its images", HEAVY: b"1"},
)


class Embedding(ClipScore):
    """Averages the unit vectors that a CLIP model gives the images, and scales the mean to length 1.

    Semantic deduplication, search and balance read it.
    """

    name: str = "score.embedding"

    def writes(self) -> tuple[pa.Field, ...]:
        return (EMBEDDING,)

    def aggregate(self, row: Mapping[str, Any], results: Sequence[Float32Array]) -> dict[str, Float32Array]:
        return {"embedding": unit_rows(np.mean(np.stack(results).astype(np.float64), axis=0))}
