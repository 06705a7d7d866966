"""The mathematics of a training step: random choices for each sample, and each sample's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.arrays import BoolArray, Float64Array, Int64Array, UInt64Array
from training.conditioning import ConditioningMask, ConditioningRates
from training.model import ModelSettings
from training.network import Condition
from training.objective import ObjectiveSettings
from training.rng import generator, keyed_uniforms, uid_hashes

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width; T
# includes an appended last-frame latent.

Forward = Callable[[Sequence[Tensor], Condition], Sequence[Tensor]]


@dataclass(frozen=True)
class StepConfig:
    """The parts of a training step that are the same for all samples."""

    model: ModelSettings
    objective: ObjectiveSettings
    conditioning: ConditioningRates
    caption_drop: float
    """Share of samples with the null caption."""
    null_text: Tensor
    """Embedding `[N, E]` of the null caption."""
    time_factor: int
    """Pixel frames per latent frame after the first."""
    seed: int


@dataclass(frozen=True)
class RandomChoices:
    """The random choices for one sample in one epoch, besides its noise."""

    mask: ConditioningMask
    drop_caption: bool


@dataclass(frozen=True)
class NoisyBatch:
    """The model's inputs and targets for a micro-batch, on the model's device."""

    noisy: list[Tensor]
    """Noisy latents `[C, T, H, W]`, one per sample."""
    targets: list[Tensor]
    """Predictions `[C, T, H, W]` that the model should make, one per sample."""
    loss_weights: list[Tensor]
    """Factor `[T]` of the squared error of every latent frame, one tensor per sample."""
    times: list[float]
    """Noise level of each sample's generated frames."""
    condition: Condition
    weights_B: Tensor
    """Weight of each sample in the loss: 1, or 0 for a repeated sample that only keeps ranks in step."""
    members_PB: Tensor
    """1 where a sample belongs to a part of the loss, and 0 elsewhere; see `training.tracking.breakdown.LossParts`."""


def stratified_quantiles(seed: int, hashes_N: UInt64Array, epochs: str | Int64Array) -> Float64Array:
    """Return a number in (0, 1) `[N]` per sample of a step, spread evenly: one in each of N equal strata.

    `hashes_N` are the samples' `uid_hashes`, and `epochs` `[N]` how often each was seen before, or a name for all.
    Keyed random numbers decide which sample has which stratum, and its position in it. So over seeds and epochs each
    sample's number is uniform. For one set of samples the numbers depend neither on their assignment to ranks nor on
    their order. The mean of N losses then varies only as much as losses vary within strata. Compared with independent
    numbers, the variance due to noise levels falls about with N^2 (stratified sampling; Kingma et al. 2021, appendix
    I.1, do the same with one offset per batch).
    """
    sort_key, within = np.empty(len(hashes_N)), np.empty(len(hashes_N))
    groups: list[tuple[str | int, Any]] = (
        [(epochs, slice(None))]
        if isinstance(epochs, str)
        else [(seen, epochs == seen) for seen in np.unique(epochs).tolist()]
    )
    for epoch, chosen in groups:
        sort_key[chosen] = keyed_uniforms(hashes_N[chosen], seed, epoch, "stratum")
        within[chosen] = keyed_uniforms(hashes_N[chosen], seed, epoch, "within")
    quantiles = np.empty(len(hashes_N))
    # Equal numbers are about as frequent as equal hashes, which break ties.
    quantiles[np.lexsort((hashes_N, sort_key))] = np.arange(len(hashes_N))
    # Of so few bits that adding a stratum is exact, and inside (0, 1).
    quantiles += (np.floor(within * 2**32) + 0.5) / 2**32
    quantiles /= max(len(hashes_N), 1)
    return quantiles


def random_choices(config: StepConfig, n_frames: int, epoch: int | str, uid: str) -> RandomChoices:
    """Return the random choices for a sample of `n_frames` latent frames, a function of (seed, epoch, uid)."""
    rng = generator(config.seed, epoch, uid)

    def uniform() -> float:
        return torch.rand((), generator=rng, dtype=torch.float64).item()

    drop_caption = uniform() < config.caption_drop
    (quantile,) = conditioning_quantiles(uid_hashes([uid]), config.seed, epoch).tolist()
    return RandomChoices(config.conditioning.draw_mask(quantile, uniform, n_frames), drop_caption)


def samples_with_last_frame(conditioning: ConditioningRates, seed: int, hashes_N: UInt64Array, epoch: int) -> BoolArray:
    """Return `[N]`: whether `random_choices` conditions each video on its last-frame latent in this epoch; planners
    need it of many.

    `hashes_N` are the `uid_hashes` of the videos.
    """
    return conditioning.has_last_frame(conditioning_quantiles(hashes_N, seed, epoch))


def conditioning_quantiles(hashes_N: UInt64Array, seed: int, epoch: int | str) -> Float64Array:
    """Return the quantile `[N]` in [0, 1) by which `ConditioningRates` selects each sample's kind of mask."""
    return keyed_uniforms(hashes_N, seed, epoch, "given")


def mse_losses(forward: Forward, batch: NoisyBatch) -> Tensor:
    """Return the weighted mean squared error `[B]` of each sample over its generated frames, in fp32."""
    losses = []
    predictions, masks = forward(batch.noisy, batch.condition), batch.condition.conditioning_masks
    for prediction_CTHW, target_CTHW, weight_T, mask_T in zip(
        predictions, batch.targets, batch.loss_weights, masks, strict=True
    ):
        error_T = weight_T * (prediction_CTHW.to(torch.float32) - target_CTHW).square().mean(dim=(0, 2, 3))
        losses.append((error_T * (1 - mask_T)).sum() / (1 - mask_T).sum())
    return torch.stack(losses)
