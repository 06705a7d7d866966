"""The network of the autoencoder `causal`: the linear autoencoder plus a correction by convolutions.

Frames are grouped as in the linear autoencoder: the first one alone, then groups of four. The convolutions get the
first frame four times, so that all groups look alike to them. They run at 1/4 of height and width and half the frames,
and then at the size of the latents. The encoder folds blocks of space and time into channels, and the decoder unfolds
them, group by group: only convolutions in time read earlier frames.

Shape suffixes: B videos, C channels, T H W frames, rows and columns, P pixel values of a block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.autoencoders._causal_convolutions import CHANNELS, CausalArchitecture, Decoder, Encoder
from training.autoencoders._causal_layers import FrameCache
from training.autoencoders._linear_blocks import from_blocks, load_weights, to_blocks
from training.autoencoders._linear_weights import FIRST_VALUES, TIME_FACTOR

LOG_VARIANCE = -6.0
"""Log-variance of the posterior before training: a standard deviation of 0.05, where that of latents is about 1."""
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -20.0, 10.0
"""Bounds of the posterior's log-variance."""


class BlockTransform(nn.Module):
    """The linear autoencoder's map from blocks of pixels to latents, and back.

    It is not trained: steps of Adam are equally large for all weights, and would destroy it.
    """

    project: Tensor
    project_bias: Tensor
    restore: Tensor
    restore_bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], kind: str, row: int) -> None:
        """`kind` is `first` or `group`, and `row` the row of its statistics in `weights`."""
        super().__init__()
        basis_PC, mean_P = weights[f"{kind}.basis"], weights[f"{kind}.mean"]
        mean_C, std_C = weights["mean"][row], weights["std"][row]
        self.register_buffer("project", basis_PC.T / std_C[:, None])
        self.register_buffer("project_bias", -(mean_P @ basis_PC + mean_C) / std_C)
        self.register_buffer("restore", basis_PC * std_C)
        self.register_buffer("restore_bias", mean_P + basis_PC @ mean_C)
        self.frames = basis_PC.shape[0] // FIRST_VALUES

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Return the latents `[B, T / frames, H / 8, W / 8, CHANNELS]` of pixels `[B, 3, T, H, W]`."""
        return F.linear(to_blocks(video_BCTHW, self.frames), self.project, self.project_bias)

    def decode(self, latent_BTHWC: Tensor) -> Tensor:
        """Return the pixels `[B, 3, T, H, W]` of latents."""
        return from_blocks(F.linear(latent_BTHWC, self.restore, self.restore_bias), self.frames)


class CausalNetwork(nn.Module):
    """Encoder, decoder, and the linear maps to which they add.

    The linear maps are those of `linear16`, and untrained convolutions add nothing. So training starts at the quality
    of `linear16`, and with its latents, of unit variance. Weights and inputs are fp32; the convolutions may compute in
    bfloat16. Pieces of a stream look alike, so the caller passes whether a piece is the first one.
    """

    def __init__(self, architecture: CausalArchitecture, bf16: bool = False) -> None:
        super().__init__()
        self.architecture, self.bf16 = architecture, bf16
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        weights = load_weights(CHANNELS)
        self.first, self.group = BlockTransform(weights, "first", 0), BlockTransform(weights, "group", 1)

    def encode(
        self, video_BCTHW: Tensor, cache: FrameCache | None = None, is_first: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, `[B, CHANNELS, t, h, w]` each, not normalised.

        The first piece of a video has 1 + 4k frames, and any later one 4k. A later piece continues from the cache that
        the piece before it updated.
        """
        linear, pixels = [], [video_BCTHW]
        if is_first:
            first_BCTHW, video_BCTHW = video_BCTHW[:, :, :1], video_BCTHW[:, :, 1:]
            linear = [self.first.encode(first_BCTHW)]
            pixels = [first_BCTHW.expand(-1, -1, TIME_FACTOR, -1, -1), video_BCTHW]
        if video_BCTHW.shape[2]:
            linear.append(self.group.encode(video_BCTHW))
        with self._precision(video_BCTHW):
            correction_BTHWC = self.encoder(torch.cat(pixels, dim=2).movedim(1, -1), cache).float()
        mean_BTHWC, log_variance_BTHWC = correction_BTHWC.chunk(2, dim=-1)
        log_variance_BTHWC = (log_variance_BTHWC + LOG_VARIANCE).clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)
        return (torch.cat(linear, dim=1) + mean_BTHWC).movedim(-1, 1), log_variance_BTHWC.movedim(-1, 1)

    def decode(self, latent_BCTHW: Tensor, cache: FrameCache | None = None, is_first: bool = True) -> Tensor:
        """Return the pixels `[B, 3, T, H, W]`: T = 1 + 4 (t - 1) for the first piece of a video, 4t for a later one."""
        latent_BTHWC = latent_BCTHW.movedim(1, -1)
        with self._precision(latent_BCTHW):
            correction_BCTHW = self.decoder(latent_BTHWC, cache).float().movedim(-1, 1)
        linear = []
        if is_first:
            linear = [self.first.decode(latent_BTHWC[:, :1])]
            latent_BTHWC, correction_BCTHW = latent_BTHWC[:, 1:], correction_BCTHW[:, :, TIME_FACTOR - 1 :]
        if latent_BTHWC.shape[1]:
            linear.append(self.group.decode(latent_BTHWC))
        video_BCTHW: Tensor = torch.cat(linear, dim=2) + correction_BCTHW
        return video_BCTHW

    def forward(
        self, video_BCTHW: Tensor, noise_BCTHW: Tensor, added_std_BCTHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction from a sample of the posterior, and the posterior's mean and log-variance.

        `noise_BCTHW` is standard normal. The sample that is decoded has more variance by the square of
        `added_std_BCTHW`, which is not normalised either.
        """
        mean_BCTHW, log_variance_BCTHW = self.encode(video_BCTHW)
        std_BCTHW = (0.5 * log_variance_BCTHW).exp()
        if added_std_BCTHW is not None:
            std_BCTHW = torch.hypot(std_BCTHW, added_std_BCTHW.expand_as(std_BCTHW))
        return self.decode(mean_BCTHW + std_BCTHW * noise_BCTHW), mean_BCTHW, log_variance_BCTHW

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16)
