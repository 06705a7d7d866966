"""The model's inputs for a micro-batch: assembled in host memory, and noised on the device.

The loader's thread puts all latents and texts of a micro-batch into one buffer, and all other numbers into two more. So
a micro-batch takes three copies to the device, which do not wait for it, whatever its number of samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cluster.arrays import Float64Array, UInt64Array
from training.condition import condition_of, latent_seconds, shape_scalars
from training.conditioning import ConditioningMask
from training.data.loader import Batch
from training.data.plan import GlobalStep, MicroBatch
from training.noise import WORDS, keyed_normals
from training.rng import hash64
from training.step import NoisyBatch, StepConfig, random_choices, stratified_quantiles
from training.tracking.breakdown import LossParts

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, F latent frames of all samples,
# N text tokens, E text width, P parts of the loss, L latent elements of all samples; T includes an appended last-frame
# latent.

N_FRAME_SCALARS, N_SHAPE_SCALARS = 3, 7


@dataclass(frozen=True)
class HostInputs:
    """The inputs of a micro-batch before noise, in pinned memory if there is CUDA."""

    values: Tensor
    """Latents, then texts, of the type that they are stored in. A sample's latents are frame by frame `[T, C, H, W]`,
    so that an appended last frame is at their end, and are filled up to a multiple of `WORDS`."""
    scalars: Tensor
    """float32: noise level, conditioning mask and presentation time of every latent frame `[3, F]`, the `shape_scalars`
    `[B, 7]`, weights `[B]`, and `NoisyBatch.members_PB`."""
    integers: Tensor
    """int64: the streams of `keyed_normals` `[B, 3]`, and the elements of every latent frame `[F]`."""
    shapes: list[tuple[int, int, int, int]]
    """Frames, channels, rows and columns of each sample."""
    text_lengths: list[int]
    times: list[float]
    """Noise level of each sample's generated frames."""
    uids: list[str]
    weights: list[float]
    """As `NoisyBatch.weights_B`."""

    @property
    def padded_sizes(self) -> list[int]:
        """Latent elements of each sample in `values`."""
        return [_padded(math.prod(shape)) for shape in self.shapes]


@dataclass(frozen=True)
class StepInputs:
    """The inputs of one rank in a training step."""

    micro_batches: list[HostInputs]
    n_samples: int
    """Samples of the step on all ranks, each counted once."""
    epoch: int


@dataclass(frozen=True, eq=False)
class StepAssembler:
    """A function from the samples of a step, as a loader reads them, to `StepInputs`.

    All that a rank must know of the other ranks' samples follows from the plan, so nothing is communicated.
    """

    config: StepConfig
    hashes_N: UInt64Array
    """The `uid_hashes` of the rows of the data set."""
    parts: LossParts

    def __call__(
        self, planned: GlobalStep, micro_batches: Sequence[MicroBatch], batches: Sequence[Batch]
    ) -> StepInputs:
        quantiles = stratified_quantiles(self.config.seed, self.hashes_N[planned.rows], planned.times_seen)
        inputs = [
            assemble(self.config, batch, quantiles[list(micro_batch.indices)], self.parts)
            for micro_batch, batch in zip(micro_batches, batches, strict=True)
        ]
        return StepInputs(inputs, len(planned.rows), planned.epoch)


def make_noisy_batch(
    config: StepConfig, batch: Batch, quantiles_B: Float64Array, device: torch.device, epoch: str | None = None
) -> NoisyBatch:
    """Return `add_noise` of `assemble`, without parts of the loss."""
    return add_noise(config, assemble(config, batch, quantiles_B, epoch=epoch), device)


def assemble(
    config: StepConfig,
    batch: Batch,
    quantiles_B: Float64Array,
    parts: LossParts | None = None,
    epoch: str | None = None,
) -> HostInputs:
    """Make the random choices for a micro-batch, and put its inputs together in host memory.

    `quantiles_B` has each sample's number of `stratified_quantiles`. Random choices are keyed on how often each sample
    was seen, or on `epoch` if it is set. Raises `ValueError` for a video without a last-frame latent if any mask may
    use one.
    """
    epochs = [epoch if epoch is not None else seen for seen in batch.times_seen]
    masks: list[ConditioningMask] = []
    texts: list[Tensor] = []
    for latent_CTHW, last_frame, text, uid, seen in zip(
        batch.latents, batch.last_frame_latents, batch.texts, batch.uids, epochs, strict=True
    ):
        n_frames = latent_CTHW.shape[1]
        if last_frame is None and n_frames > 1 and config.conditioning.uses_last_frame:
            raise ValueError(
                f"sample {uid} has no last-frame latent, which conditioning `last` and `both` need: "
                "encode its clips again, or set both to 0"
            )
        choices = random_choices(config, n_frames, seen, uid)
        masks.append(choices.mask)
        texts.append(config.null_text if choices.drop_caption else text)
    times = [
        config.objective.time(quantile, config.model.tokens(*latent.shape[1:]))
        for quantile, latent in zip(quantiles_B.tolist(), batch.latents, strict=True)
    ]
    shapes = [_frames_first(latent, mask) for latent, mask in zip(batch.latents, masks, strict=True)]
    sizes = [_padded(math.prod(shape)) for shape in shapes]
    values = _empty(sum(sizes) + sum(text.numel() for text in texts), batch.latents[0].dtype)
    *latent_parts, _ = torch.split(values, [*sizes, len(values) - sum(sizes)])
    for part, shape, index in zip(latent_parts, shapes, range(len(shapes)), strict=True):
        n_elements, n_frames = math.prod(shape), batch.latents[index].shape[1]
        part[n_elements:] = 0
        clean_TCHW = part[:n_elements].view(shape)
        clean_TCHW[:n_frames] = batch.latents[index].transpose(0, 1)
        if masks[index].last_frame:
            last_frame_C1HW = batch.last_frame_latents[index]
            assert last_frame_C1HW is not None
            clean_TCHW[n_frames:] = last_frame_C1HW.transpose(0, 1)
    torch.cat([text.to(values.dtype).flatten() for text in texts], out=values[sum(sizes) :])
    weights = batch.weights.tolist()
    rows = [
        _frame_scalars(mask, time, fps, config.time_factor)
        for mask, time, fps in zip(masks, times, batch.fps.tolist(), strict=True)
    ]
    shape_B7 = [shape_scalars(*one) for one in zip(batch.fps.tolist(), batch.sizes, batch.framings, strict=True)]
    members_PB = parts.members(batch.buckets, times) if parts else torch.zeros(0, len(weights))
    scalars = torch.cat((torch.cat(rows, dim=1).flatten(), torch.tensor(shape_B7).flatten()))
    scalars = torch.cat((scalars, torch.tensor(weights), members_PB.flatten()))
    starts = itertools.accumulate([0, *(size // WORDS for size in sizes[:-1])])
    hashes = [hash64(config.seed, seen, uid) for seen, uid in zip(epochs, batch.uids, strict=True)]
    integers = [
        word for start, one in zip(starts, hashes, strict=True) for word in (start, one & 0xFFFFFFFF, one >> 32)
    ]
    for (n_frames, *frame), size in zip(shapes, sizes, strict=True):
        # What fills a sample up counts to its last frame.
        integers += [math.prod(frame)] * (n_frames - 1) + [size - (n_frames - 1) * math.prod(frame)]
    return HostInputs(
        values,
        _pinned(scalars),
        _pinned(torch.tensor(integers)),
        shapes,
        [len(text) for text in texts],
        times,
        batch.uids,
        weights,
    )


def add_noise(config: StepConfig, inputs: HostInputs, device: torch.device) -> NoisyBatch:
    """Copy a micro-batch to the device and noise it there.

    Conditioning frames get their mask's noise level, all others the one of their sample. The model's `image_channels`
    are not noised.
    """
    n_samples, n_frames = len(inputs.shapes), sum(shape[0] for shape in inputs.shapes)
    sizes, n_elements = inputs.padded_sizes, sum(inputs.padded_sizes)
    values, scalars, integers = (
        tensor.to(device, non_blocking=True) for tensor in (inputs.values, inputs.scalars, inputs.integers)
    )
    frames, shape_scalars_B7, weights_B, members_PB = torch.split(
        scalars,
        [
            N_FRAME_SCALARS * n_frames,
            N_SHAPE_SCALARS * n_samples,
            n_samples,
            len(scalars) - N_FRAME_SCALARS * n_frames - (N_SHAPE_SCALARS + 1) * n_samples,
        ],
    )
    time_F, mask_F, seconds_F = frames.view(N_FRAME_SCALARS, n_frames)
    streams, frame_sizes_F = torch.split(integers, [3 * n_samples, n_frames])
    noise_L = keyed_normals(streams.view(n_samples, 3), n_elements // WORDS, hash64(config.seed, "noise"))
    clean_L = values[:n_elements].to(torch.float32)
    time_L = torch.repeat_interleave(time_F, frame_sizes_F, output_size=n_elements)
    objective, image_channels = config.objective, config.model.image_channels
    text_dim = config.null_text.shape[-1]
    texts_NE = values[n_elements:].to(torch.float32).view(-1, text_dim)
    lengths = [shape[0] for shape in inputs.shapes]
    condition = condition_of(
        torch.split(texts_NE, inputs.text_lengths),
        torch.split(time_F, lengths),
        torch.split(mask_F, lengths),
        torch.split(seconds_F, lengths),
        shape_scalars_B7.view(n_samples, N_SHAPE_SCALARS),
    )

    def samples(flat_L: Tensor, channels: slice) -> list[Tensor]:
        return [
            part[: math.prod(shape)].view(shape).transpose(0, 1)[channels]
            for part, shape in zip(torch.split(flat_L, sizes), inputs.shapes, strict=True)
        ]

    generated = slice(-image_channels or None)
    if image_channels:
        condition = replace(condition, images=samples(clean_L, slice(-image_channels, None)))
    return NoisyBatch(
        noisy=samples(objective.corrupt(clean_L, noise_L, time_L), generated),
        targets=samples(objective.training_target(clean_L, noise_L, time_L), generated),
        loss_weights=list(torch.split(objective.loss_weight(time_F), lengths)),
        times=inputs.times,
        condition=condition,
        weights_B=weights_B,
        members_PB=members_PB.view(-1, n_samples),
    )


def _frames_first(latent_CTHW: Tensor, mask: ConditioningMask) -> tuple[int, int, int, int]:
    """Return the shape (T, C, H, W) of a sample's latents, with the last-frame latent if it conditions the model."""
    channels, frames, height, width = latent_CTHW.shape
    return frames + mask.last_frame, channels, height, width


def _frame_scalars(mask: ConditioningMask, time: float, fps: float, time_factor: int) -> Tensor:
    """Return noise level, conditioning mask and presentation time `[3, T]` of a sample's latent frames."""
    mask_T = torch.tensor([*mask.frames, *([True] if mask.last_frame else [])], dtype=torch.float32)
    time_T = torch.where(mask_T > 0, mask.time, time)
    return torch.stack((time_T, mask_T, latent_seconds(len(mask_T), fps, time_factor, mask.last_frame)))


def _padded(size: int) -> int:
    """Return the smallest multiple of `WORDS` that is at least `size`."""
    return -(-size // WORDS) * WORDS


def _empty(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, pin_memory=torch.cuda.is_available())


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
