"""The loss of autoencoder training.

Shape suffixes: B videos, C colours or channels, T H W frames, rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.autoencoder_training.settings import LossSettings


def reconstruction_loss(settings: LossSettings, made_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """Return the weighted sum `[B]` of the loss's parts that compare pixels.

    Each part is a norm of the error in another basis: pixels, differences between neighbours, or frequencies.
    """
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


def kl_divergence(mean_BCTHW: Tensor, log_variance_BCTHW: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence `[B]` of the posterior from a standard normal distribution.

    It is in nats, the mean over latent values.
    """
    return 0.5 * (mean_BCTHW.square() + log_variance_BCTHW.exp() - 1 - log_variance_BCTHW).mean(dim=(1, 2, 3, 4))
