"""The mathematics of a training step: random choices for each sample, the model's inputs, and each sample's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.arrays import BoolArray, Float64Array, UInt64Array
from cluster.storage import digest
from training.conditioning import ConditioningMask, ConditioningRates
from training.data.loader import Batch
from training.framing import Framing
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
    """The random choices for one sample in one epoch."""

    noise_CTHW: Tensor
    """Noise of every latent frame, and of the last-frame latent if it is appended."""
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


@dataclass(frozen=True)
class SampleCondition:
    """The condition of one sample; `stack_conditions` makes a model's `Condition` of several."""

    text_NE: Tensor
    time_T: Tensor
    """Noise level of every latent frame."""
    mask_T: Tensor
    """Conditioning mask: 1.0 for conditioning frames, 0.0 for generated ones."""
    last_frame: bool
    """Whether the last entry of T is an appended last-frame latent."""
    fps: float
    size: tuple[int, int]
    """Width and height in pixels."""
    framing: Framing


def sample_key(epoch: int | str, uid: str) -> str:
    """Return the name of a sample within a step, which may hold the same sample twice, in two epochs."""
    return f"{epoch}/{uid}"


def stratified_quantiles(seed: int, keys: Iterable[str]) -> dict[str, float]:
    """Return a number in (0, 1) per key of samples that train together, spread evenly: one in each of n equal strata.

    Hashes decide which sample has which stratum, and its position in it. So over seeds and epochs each sample's number
    is uniform. For one set of samples the numbers depend neither on their assignment to ranks nor on their order. The
    mean of n losses then varies only as much as losses vary within strata. Compared with independent numbers, the
    variance due to noise levels falls about with n^2 (stratified sampling; Kingma et al. 2021, appendix I.1, do the
    same with one offset per batch).
    """
    ordered = sorted(set(keys), key=lambda key: digest(str(seed), "stratum", key))
    return {
        key: (stratum + _hash_uniform(str(seed), "within", key)) / len(ordered) for stratum, key in enumerate(ordered)
    }


def _hash_uniform(*keys: str) -> float:
    """Return a number inside (0, 1) from 32 bits of a hash: few enough bits that adding a stratum is exact, and a
    quantile is below 1.
    """
    return (int(digest(*keys, size_bytes=4), 16) + 0.5) / 2**32


def random_choices(config: StepConfig, shape: Sequence[int], epoch: int | str, uid: str) -> RandomChoices:
    """Return the random choices for a sample with latents of `shape` (C, T, H, W), a function of (seed, epoch, uid)."""
    rng = generator(config.seed, epoch, uid)

    def uniform() -> float:
        return torch.rand((), generator=rng, dtype=torch.float64).item()

    drop_caption = uniform() < config.caption_drop
    (quantile,) = conditioning_quantiles(uid_hashes([uid]), config.seed, epoch).tolist()
    mask = config.conditioning.draw_mask(quantile, uniform, shape[1])
    noise_CTHW = torch.randn(tuple(shape), generator=rng)
    if mask.last_frame:
        noise_CTHW = torch.cat((noise_CTHW, torch.randn((shape[0], 1, *shape[2:]), generator=rng)), dim=1)
    return RandomChoices(noise_CTHW, mask, drop_caption)


def samples_with_last_frame(conditioning: ConditioningRates, seed: int, hashes_N: UInt64Array, epoch: int) -> BoolArray:
    """Return `[N]`: whether `random_choices` conditions each video on its last-frame latent in this epoch; planners
    need it of many.

    `hashes_N` are the `uid_hashes` of the videos.
    """
    return conditioning.has_last_frame(conditioning_quantiles(hashes_N, seed, epoch))


def conditioning_quantiles(hashes_N: UInt64Array, seed: int, epoch: int | str) -> Float64Array:
    """Return the quantile `[N]` in [0, 1) by which `ConditioningRates` selects each sample's kind of mask."""
    return keyed_uniforms(hashes_N, seed, epoch, "given")


def make_noisy_batch(
    config: StepConfig, batch: Batch, quantile_of: Mapping[str, float], device: torch.device, epoch: str | None = None
) -> NoisyBatch:
    """Noise a micro-batch: conditioning frames get their mask's noise level, all others the one at their sample's
    quantile.

    `quantile_of` is the result of `stratified_quantiles`. Random choices are keyed on each sample's pass, or on `epoch`
    if it is set. Raises `ValueError` for a video without a last-frame latent if any mask may use one.
    """
    noisy, targets, loss_weights, times, conditions = [], [], [], [], []
    for index, (latent_CTHW, last_frame_C1HW, uid) in enumerate(
        zip(batch.latents, batch.last_frame_latents, batch.uids, strict=True)
    ):
        if last_frame_C1HW is None and latent_CTHW.shape[1] > 1 and config.conditioning.uses_last_frame:
            raise ValueError(
                f"sample {uid} has no last-frame latent, which conditioning `last` and `both` need: "
                "encode its clips again, or set both to 0"
            )
        sample_epoch = epoch or batch.times_seen[index]
        choices = random_choices(config, latent_CTHW.shape, sample_epoch, uid)
        n_tokens = config.model.tokens(*latent_CTHW.shape[1:])
        time = config.objective.time(quantile_of[sample_key(sample_epoch, uid)], n_tokens)
        mask_T = mask_tensor(choices.mask).to(device)
        time_T = torch.where(mask_T > 0, choices.mask.time, time)
        clean_CTHW, noise_CTHW = latent_CTHW.to(device, non_blocking=True), choices.noise_CTHW.to(device)
        if choices.mask.last_frame:
            assert last_frame_C1HW is not None
            clean_CTHW = torch.cat((clean_CTHW, last_frame_C1HW.to(device, non_blocking=True)), dim=1)
        noisy.append(config.objective.corrupt(clean_CTHW, noise_CTHW, time_T[:, None, None]))
        targets.append(config.objective.training_target(clean_CTHW, noise_CTHW, time_T[:, None, None]))
        loss_weights.append(config.objective.loss_weight(time_T))
        times.append(time)
        text_NE = config.null_text if choices.drop_caption else batch.texts[index]
        conditions.append(
            SampleCondition(
                text_NE.to(device, non_blocking=True),
                time_T,
                mask_T,
                choices.mask.last_frame,
                float(batch.fps[index]),
                batch.sizes[index],
                batch.framings[index],
            )
        )
    return NoisyBatch(noisy, targets, loss_weights, times, stack_conditions(conditions, config.time_factor))


def mask_tensor(mask: ConditioningMask) -> Tensor:
    """Return `[T]`: 1.0 for every conditioning frame, 0.0 for the others; an appended last-frame latent is one more
    entry.
    """
    return torch.tensor([*mask.frames, *([True] if mask.last_frame else [])], dtype=torch.float32)


def stack_conditions(samples: Sequence[SampleCondition], time_factor: int) -> Condition:
    """Return the model's condition for these samples; training and sampling both build it here."""
    device = samples[0].time_T.device
    framings = [sample.framing for sample in samples]
    return Condition(
        texts=[sample.text_NE for sample in samples],
        times=[sample.time_T for sample in samples],
        conditioning_masks=[sample.mask_T for sample in samples],
        seconds=[
            latent_seconds(len(sample.time_T), sample.fps, time_factor, sample.last_frame).to(device)
            for sample in samples
        ],
        fps_B=torch.tensor([sample.fps for sample in samples], dtype=torch.float32, device=device),
        size_B2=torch.tensor([sample.size for sample in samples], dtype=torch.float32, device=device),
        crop_B2=torch.tensor([(framing.left, framing.top) for framing in framings], dtype=torch.float32, device=device),
        source_B2=torch.tensor(
            [(framing.source_width, framing.source_height) for framing in framings], dtype=torch.float32, device=device
        ),
    )


def latent_seconds(n_frames: int, fps: float, time_factor: int, last_frame: bool = False) -> Tensor:
    """Return the presentation time `[T]` of latent frames in seconds: the mean time of the pixel frames that each
    covers.

    The first latent frame is pixel frame 0 alone. Latent frame k >= 1 covers pixel frames (k - 1) r + 1 to k r, whose
    mean is ((2k - 1) r + 1) / 2, where r is `time_factor`. With `last_frame` the last entry is the last-frame latent:
    the last pixel frame of the latent frames before it, alone.
    """
    k = torch.arange(n_frames, dtype=torch.float32)
    pixel_frame = torch.where(k > 0, ((2 * k - 1) * time_factor + 1) / 2, torch.zeros_like(k))
    if last_frame:
        pixel_frame[-1] = (n_frames - 2) * time_factor
    return pixel_frame / fps


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
