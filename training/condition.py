"""The condition of samples, as training and sampling give it to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.framing import Framing
from training.network import Condition

# Shape suffixes: T latent frames, N text tokens, E text width; T includes an appended last-frame latent.


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
    guidance: float = 1.0
    """Guidance scale that the model is told, the same for all samples of a stack."""
    image_CTHW: Tensor | None = None
    """Latents of the first frame followed by grey, see `Condition.images`."""
    image_NE: Tensor | None = None
    """Embeddings of the first frame, see `Condition.image_tokens`."""


def stack_conditions(samples: Sequence[SampleCondition], time_factor: int) -> Condition:
    """Return the model's condition for these samples."""
    device = samples[0].time_T.device
    seconds = [
        latent_seconds(len(sample.time_T), sample.fps, time_factor, sample.last_frame).to(device, non_blocking=True)
        for sample in samples
    ]
    scalars = [shape_scalars(sample.fps, sample.size, sample.framing) for sample in samples]
    condition = condition_of(
        [sample.text_NE for sample in samples],
        [sample.time_T for sample in samples],
        [sample.mask_T for sample in samples],
        seconds,
        torch.tensor(scalars, dtype=torch.float32).to(device, non_blocking=True),
    )
    images = [sample.image_CTHW for sample in samples if sample.image_CTHW is not None]
    tokens = [sample.image_NE for sample in samples if sample.image_NE is not None]
    return replace(condition, guidance=samples[0].guidance, images=images, image_tokens=tokens)


def condition_of(
    texts: Sequence[Tensor],
    times: Sequence[Tensor],
    masks: Sequence[Tensor],
    seconds: Sequence[Tensor],
    shape_B7: Tensor,
) -> Condition:
    """Return the condition of samples from tensors on the model's device; `shape_B7` has the `shape_scalars` of each.

    Training and sampling both make it here.
    """
    fps_B1, size_B2, crop_B2, source_B2 = torch.split(shape_B7, [1, 2, 2, 2], dim=1)
    return Condition(texts, times, masks, seconds, fps_B1[:, 0], size_B2, crop_B2, source_B2)


def shape_scalars(fps: float, size: tuple[int, int], framing: Framing) -> tuple[float, ...]:
    """Return the 7 scalars of a sample's condition: frames per second, and width and height of the sample in pixels, of
    what was cropped away, and of the source.
    """
    return fps, *size, framing.left, framing.top, framing.source_width, framing.source_height


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
