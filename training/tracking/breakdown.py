"""A step's loss by noise level, by bucket, and of images and videos: a mean alone hides which of them does not learn."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from training.data.loader import Batch
from training.engine import Engine
from training.step import StepConfig

SIDE_STEP = 32
"""Buckets of one size differ in area by less, and a record stays short however many aspects there are."""


class Outcome(NamedTuple):
    """What became of one sample in one step."""

    uid: str
    loss: float
    weight: float
    time: float
    """Noise level of its generated frames."""
    side: int
    """Of the square of its area, in pixels, to the nearest `SIDE_STEP`: one for all aspects of a bucket."""
    frames: int


def outcomes(task: StepConfig, batch: Batch, times: Sequence[float], losses: Sequence[float]) -> list[Outcome]:
    """Of the samples of a micro-batch that count, from their noise levels and losses."""
    return [
        Outcome(uid, loss, weight, time, _side(*size), 1 + (latent.shape[1] - 1) * task.time_factor)
        for uid, loss, weight, time, size, latent in zip(
            batch.uids, losses, batch.weights.tolist(), times, batch.sizes, batch.latents, strict=True
        )
        if weight > 0
    ]


def _side(width: int, height: int) -> int:
    return max(1, round(math.sqrt(width * height) / SIDE_STEP)) * SIDE_STEP


def shared(own: Sequence[Outcome], engine: Engine) -> list[Outcome]:
    """Those of all ranks, in order of rank; of ranks that share their samples, those of the first."""
    told = [json.dumps(one) for one in own] if engine.rank % engine.context_parallel == 0 else []
    return [Outcome(*json.loads(line)) for line in engine.all_gather(told)]


def breakdown(done: Sequence[Outcome], name: str) -> dict[str, float]:
    """Weighted means: `name` over all samples, and over those of each part that has any.

    The parts are `name_time/0.3` (noise levels from 0.3 to 0.4), `name_bucket/256px_33f`, `name_kind/image` and `name_kind/video`.
    """
    parts: dict[str, list[Outcome]] = defaultdict(list)
    for one in done:
        parts[f"{name}_time/0.{min(int(one.time * 10), 9)}"].append(one)
        parts[f"{name}_bucket/{one.side}px_{one.frames}f"].append(one)
        parts[f"{name}_kind/{'image' if one.frames == 1 else 'video'}"].append(one)
    return {name: _mean(done)} | {part: _mean(parts[part]) for part in sorted(parts)}


def _mean(done: Iterable[Outcome]) -> float:
    done = list(done)
    return sum(one.loss * one.weight for one in done) / sum(one.weight for one in done)
