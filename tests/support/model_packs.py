"""Packs of small random samples, transformers with random weights, and their predictions and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.models.dit import DiT
from training.network import Condition, VideoModel

SMALL = DiT(depth=2, dim=64, heads=2)
SHAPES = [(3, 4, 6), (1, 8, 8), (3, 4, 6), (2, 3, 5), (1, 8, 8), (5, 2, 2)]
"""Latent frames, rows and columns of the samples of a pack; two shapes occur twice."""
TEXT_LENGTHS = [2, 9, 1, 5, 5, 3]
"""Text tokens of the same samples."""
CHANNELS, TEXT_DIM = 5, 24
"""Latent channels and text width of packs and models."""
LIST_FIELDS = ("texts", "times", "conditioning_masks", "seconds")
"""Fields of `Condition` that hold one tensor per sample."""


def random_condition(
    batch: int, frames: int, text_lengths: Sequence[int] | None = None, text_dim: int = TEXT_DIM, seed: int = 0
) -> Condition:
    """Return the condition of samples with the same number of latent frames, and 4 text tokens by default."""
    rng = torch.Generator().manual_seed(seed)
    return Condition(
        texts=[torch.randn(n, text_dim, generator=rng) for n in text_lengths or [4] * batch],
        times=[torch.rand(1, generator=rng).expand(frames).clone() for _ in range(batch)],
        conditioning_masks=[torch.zeros(frames)] * batch,
        seconds=[torch.arange(frames) * 0.5] * batch,
        fps_B=torch.full((batch,), 8.0),
        size_B2=torch.tensor([[96.0, 64.0]]).expand(batch, 2),
        crop_B2=torch.tensor([[0.125, 0.0]]).expand(batch, 2),
        source_B2=torch.tensor([[1920.0, 960.0]]).expand(batch, 2),
    )


def random_pack(
    shapes: Sequence[tuple[int, int, int]],
    text_lengths: Sequence[int],
    channels: int = CHANNELS,
    text_dim: int = TEXT_DIM,
) -> tuple[list[Tensor], Condition]:
    """Return latents `[C, T, H, W]` of these shapes (T, H, W) and their condition.

    Samples differ in text, noise level, frame rate, size, crop and size of the source.
    """
    rng = torch.Generator().manual_seed(0)
    conditions = [
        random_condition(1, frames, [length], text_dim, seed=index)
        for index, ((frames, _, _), length) in enumerate(zip(shapes, text_lengths, strict=True))
    ]
    latents = [torch.randn(channels, *shape, generator=rng) for shape in shapes]
    lists = {name: [getattr(condition, name)[0] for condition in conditions] for name in LIST_FIELDS}
    fps_B = 8 + 4 * torch.rand(len(shapes), generator=rng)
    size_B2 = 64 + 64 * torch.rand(len(shapes), 2, generator=rng)
    crop_B2 = 0.5 * torch.rand(len(shapes), 2, generator=rng)
    source_B2 = 128 + 64 * torch.rand(len(shapes), 2, generator=rng)
    return latents, Condition(**lists, fps_B=fps_B, size_B2=size_B2, crop_B2=crop_B2, source_B2=source_B2)


def perturbed_model(
    settings: DiT = SMALL, channels: int = CHANNELS, text_dim: int = TEXT_DIM, seed: int = 0
) -> VideoModel:
    """Return a model with noise on its initial weights, as after some training: its output is not zero."""
    torch.manual_seed(seed)
    model = settings.build(channels, text_dim)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def predict(model: VideoModel, x_BCTHW: Tensor, condition: Condition) -> Tensor:
    """Return the predictions for samples of one shape as a tensor `[B, C, T, H, W]`."""
    return torch.stack(model(x_BCTHW.unbind(0), condition))


def mean_squares(predictions: Sequence[Tensor]) -> Tensor:
    """Return the sum over samples of each prediction's mean square: a loss that all weights influence."""
    return torch.stack([prediction.square().mean() for prediction in predictions]).sum()


def gradients(model: VideoModel, latents: Sequence[Tensor], condition: Condition) -> dict[str, Tensor]:
    """Return the gradient of `mean_squares` by each weight, by the weight's name."""
    model.zero_grad()
    mean_squares(model(latents, condition)).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found
