"""score.embedding: one vector for what a clip shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.engine.segments import HEAVY
from pipelines.steps.score._clip import ClipScore, Floats, unit_rows

EMBEDDING = pa.field(
    "embedding",
    pa.list_(pa.float32()),
    metadata={"doc": "unit vector of what the clip shows: mean over its pictures", HEAVY: b"1"},
)


class Embedding(ClipScore):
    """The mean of the unit vectors a CLIP model gives the pictures, brought to length 1: for semantic duplicates, search and balance."""

    name: str = "score.embedding"

    def writes(self) -> tuple[pa.Field, ...]:
        return (EMBEDDING,)

    def sum_up(self, row: Mapping[str, Any], seen: Sequence[Floats]) -> dict[str, Floats]:
        return {"embedding": unit_rows(np.mean(np.stack(seen).astype(np.float64), axis=0))}
