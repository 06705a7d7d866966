"""The loss that an autoencoder is trained with.

Shape suffixes: B videos, C colours or channels, T H W frames, rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.autoencoder_training.settings import LossSettings


def reconstruction_loss(settings: LossSettings, made_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """`[B]`: the weighted parts of the loss that compare pixels. Each is a norm of the error in another basis: pixels, differences, frequencies."""
    error_BCTHW = made_BCTHW.float() - video_BCTHW.float()
    differences = [
        error_BCTHW.diff(dim=dim).abs().mean(dim=(1, 2, 3, 4)) for dim in (2, 3, 4) if error_BCTHW.shape[dim] > 1
    ]
    spectrum_BCTHW = torch.fft.rfft2(error_BCTHW, norm="ortho").abs()
    loss_B: Tensor = settings.l1 * error_BCTHW.abs().mean(dim=(1, 2, 3, 4)) + settings.frequency * spectrum_BCTHW.mean(
        dim=(1, 2, 3, 4)
    )
    loss_B += settings.gradient * torch.stack(differences).sum(0)
    return loss_B


def divergence(mean_BCTHW: Tensor, log_variance_BCTHW: Tensor) -> Tensor:
    """`[B]`: Kullback-Leibler divergence of the posterior from a standard normal distribution, in nats, a mean over latent values."""
    return 0.5 * (mean_BCTHW.square() + log_variance_BCTHW.exp() - 1 - log_variance_BCTHW).mean(dim=(1, 2, 3, 4))
