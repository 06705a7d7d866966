"""The loss of a step by noise level, by bucket, and of images and videos, which a mean over all samples would hide."""

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
"""Pixels to which sides are rounded. Buckets of one size differ by less, so a record is short whatever
their aspects."""


class SampleLoss(NamedTuple):
    """The loss of one sample in one step."""

    uid: str
    loss: float
    weight: float
    time: float
    """Noise level of its generated frames."""
    side: int
    """Side of the square with the sample's area, in pixels, to the nearest `SIDE_STEP`."""
    frames: int


def sample_losses(
    config: StepConfig, batch: Batch, times: Sequence[float], losses: Sequence[float]
) -> list[SampleLoss]:
    """Return the losses of the samples of a micro-batch, without those of weight 0."""
    return [
        SampleLoss(uid, loss, weight, time, _side(*size), 1 + (latent.shape[1] - 1) * config.time_factor)
        for uid, loss, weight, time, size, latent in zip(
            batch.uids, losses, batch.weights.tolist(), times, batch.sizes, batch.latents, strict=True
        )
        if weight > 0
    ]


def _side(width: int, height: int) -> int:
    return max(1, round(math.sqrt(width * height) / SIDE_STEP)) * SIDE_STEP


def gather_losses(own: Sequence[SampleLoss], engine: Engine) -> list[SampleLoss]:
    """Return the losses of all ranks, in order of rank. Of ranks that share their samples, only the first counts."""
    lines = [json.dumps(one) for one in own] if engine.rank % engine.context_parallel == 0 else []
    return [SampleLoss(*json.loads(line)) for line in engine.all_gather(lines)]


def breakdown(losses: Sequence[SampleLoss], name: str) -> dict[str, float]:
    """Return weighted means: `name` over all samples, and one for each part that has any.

    The parts are `name_time/0.3` (noise levels from 0.3 to 0.4), `name_bucket/256px_33f`, `name_kind/image` and
    `name_kind/video`.
    """
    parts: dict[str, list[SampleLoss]] = defaultdict(list)
    for one in losses:
        parts[f"{name}_time/0.{min(int(one.time * 10), 9)}"].append(one)
        parts[f"{name}_bucket/{one.side}px_{one.frames}f"].append(one)
        parts[f"{name}_kind/{'image' if one.frames == 1 else 'video'}"].append(one)
    return {name: _mean(losses)} | {part: _mean(parts[part]) for part in sorted(parts)}


def _mean(losses: Iterable[SampleLoss]) -> float:
    losses = list(losses)
    return sum(one.loss * one.weight for one in losses) / sum(one.weight for one in losses)
