"""Micro-batches of small random samples, as the loader makes them and as the model receives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.arrays import Float64Array
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import Framing, full_framing
from training.inputs import make_noisy_batch
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.rng import uid_hashes
from training.step import NoisyBatch, StepConfig, stratified_quantiles

CPU = torch.device("cpu")
SPACE_FACTOR = 8
"""Pixels per latent row and column."""
CONFIG = StepConfig(
    model=DiT(depth=1, dim=32, heads=2),
    objective=FlowMatching(),
    conditioning=ConditioningRates(none=0.5, first=0.5),
    caption_drop=0.3,
    null_text=torch.zeros(1, 8),
    time_factor=4,
    seed=7,
)
UIDS = [f"clip-{index}" for index in range(12)]
SHAPES = [(3, 3, 4, 4), (3, 1, 6, 4)]
"""Latent shapes (C, T, H, W) of samples with an even and with an odd index."""
LAST_FRAMES = [
    None if index % 2 else torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(100 + index))
    for index in range(12)
]
FRAMINGS = [Framing(0.25, 0.0, 64, 32), Framing(0.0, 0.125, 64, 128)]


def make_batch(latents: list[Tensor], texts: list[Tensor], uids: list[str], epoch: int = 0, **fields: Any) -> Batch:
    """Return a batch of uncropped samples at 8 frames per second and without last-frame latents; `fields` replace its
    fields.
    """
    count = len(latents)
    sizes = [(latent.shape[3] * SPACE_FACTOR, latent.shape[2] * SPACE_FACTOR) for latent in latents]
    batch = Batch(
        latents=latents,
        last_frame_latents=[None] * count,
        texts=texts,
        uids=uids,
        weights=torch.ones(count),
        fps=torch.full((count,), 8.0),
        sizes=sizes,
        framings=[full_framing(*size, 0.0) for size in sizes],
        buckets=[""] * count,
        times_seen=[epoch] * count,
        epoch=epoch,
    )
    return replace(batch, **fields)


def stored_batch(indices: Sequence[int], epoch: int = 0) -> Batch:
    """Return the samples with these indices, below 12, whose shapes alternate between the two of `SHAPES`."""
    return make_batch(
        latents=[torch.randn(SHAPES[i % 2], generator=torch.Generator().manual_seed(i)) for i in indices],
        texts=[torch.full((1 + i % 3, 8), float(i + 1)) for i in indices],
        uids=[UIDS[i] for i in indices],
        epoch=epoch,
        last_frame_latents=[LAST_FRAMES[i] for i in indices],
        framings=[FRAMINGS[i % 2] for i in indices],
    )


def noisy_batch(indices: Sequence[int], epoch: int = 0, config: StepConfig = CONFIG) -> NoisyBatch:
    """Return the model's inputs for these samples, in a step that has all twelve."""
    quantiles = quantiles_of(UIDS, config.seed, epoch)
    return make_noisy_batch(config, stored_batch(indices, epoch), quantiles[list(indices)], CPU)


def quantiles_of(uids: Sequence[str], seed: int, epoch: int) -> Float64Array:
    """Return the stratified quantiles of the samples of a step, all of which were seen `epoch` times before."""
    return stratified_quantiles(seed, uid_hashes(uids), np.full(len(uids), epoch))
