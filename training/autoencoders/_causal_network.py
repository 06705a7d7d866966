"""The network of the autoencoder `causal`: the linear autoencoder plus a correction by convolutions.

Frames are grouped as in the linear autoencoder: the first one alone, then groups of four. The convolutions get the
first frame four times, so that all groups look alike to them. They run at 1/4 of height and width and half the frames,
and then at the size of the latents. The encoder folds blocks of space and time into channels, and the decoder unfolds
them, group by group: only convolutions in time read earlier frames.

Shape suffixes: B videos, C channels, T H W frames, rows and columns, P pixel values of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.autoencoders._causal_layers import (
    Block,
    FrameCache,
    Head,
    SpaceConv,
    blocks_to_channels,
    channels_to_blocks,
)
from training.autoencoders._linear_blocks import from_blocks, load_weights, to_blocks
from training.autoencoders._linear_weights import FIRST_VALUES, SPACE_FACTOR, TIME_FACTOR

CHANNELS = 16
"""Latent channels."""
PATCH_TIME, PATCH_SPACE = 2, 4
"""Frames, and pixels a side, of the blocks that become channels at the fine size."""
PATCH_VALUES = 3 * PATCH_TIME * PATCH_SPACE**2
"""Pixel values of such a block: 96."""
STEP_TIME, STEP_SPACE = TIME_FACTOR // PATCH_TIME, SPACE_FACTOR // PATCH_SPACE
"""Fine frames, and fine cells a side, of the blocks that become channels at the coarse size, which is the latents'."""
LOG_VARIANCE = -6.0
"""Log-variance of the posterior before training: a standard deviation of 0.05, where that of latents is about 1."""
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -20.0, 10.0
"""Bounds of the posterior's log-variance."""

# The attributes of modules are the names of weights in files, and the fields of `CausalArchitecture` are in the header:
# to rename one makes all files unreadable.


@dataclass(frozen=True)
class CausalArchitecture:
    """The widths of a network and its numbers of blocks, at 1/4 of height and width (`fine`) and at 1/8 (`coarse`)."""

    fine: int
    coarse: int
    encoder_fine: int
    encoder_coarse: int
    decoder_fine: int
    decoder_coarse: int

    @property
    def receptive_radius(self) -> int:
        """Most latent cells between a latent cell and the pixels it depends on, or the pixels that depend on it.

        A 3x3 convolution reads one pixel further in each direction, at its own scale.
        """
        encoder = self.encoder_fine * PATCH_SPACE + (self.encoder_coarse + 1) * SPACE_FACTOR
        decoder = (self.decoder_fine + 1) * PATCH_SPACE + (self.decoder_coarse + 1) * SPACE_FACTOR
        return -(-max(encoder, decoder) // SPACE_FACTOR)


PRESETS: Mapping[str, CausalArchitecture] = {
    "tiny": CausalArchitecture(16, 16, 1, 1, 1, 1),
    "small": CausalArchitecture(128, 160, 2, 3, 4, 3),
    "large": CausalArchitecture(256, 640, 3, 5, 5, 6),
}
"""Architectures by name; tiny is for tests."""


class Encoder(nn.Module):
    """The convolutions from pixels to corrections of the latents."""

    def __init__(self, architecture: CausalArchitecture) -> None:
        super().__init__()
        self.enter = nn.Linear(PATCH_VALUES, architecture.fine)
        self.fine = nn.ModuleList(Block(architecture.fine) for _ in range(architecture.encoder_fine))
        self.down = nn.Linear(STEP_TIME * STEP_SPACE**2 * architecture.fine, architecture.coarse)
        self.coarse = nn.ModuleList(Block(architecture.coarse) for _ in range(architecture.encoder_coarse))
        self.leave = Head(architecture.coarse, 2 * CHANNELS)

    def forward(self, pixels_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Return mean and log-variance `[B, t, H / 8, W / 8, 2 * CHANNELS]` of full groups `[B, 4t, H, W, 3]`."""
        x_BTHWC = self.enter(blocks_to_channels(pixels_BTHWC, PATCH_TIME, PATCH_SPACE))
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, cache)
        x_BTHWC = self.down(blocks_to_channels(x_BTHWC, STEP_TIME, STEP_SPACE))
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, cache)
        y_BTHWC: Tensor = self.leave(x_BTHWC)
        return y_BTHWC


class Decoder(nn.Module):
    """The convolutions from latents to corrections of the pixels."""

    def __init__(self, architecture: CausalArchitecture) -> None:
        super().__init__()
        self.enter = SpaceConv(CHANNELS, architecture.coarse)
        self.coarse = nn.ModuleList(Block(architecture.coarse) for _ in range(architecture.decoder_coarse))
        self.up = nn.Linear(architecture.coarse, STEP_TIME * STEP_SPACE**2 * architecture.fine)
        self.fine = nn.ModuleList(Block(architecture.fine) for _ in range(architecture.decoder_fine))
        self.leave = Head(architecture.fine, PATCH_VALUES)

    def forward(self, latent_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Return the pixels of full groups `[B, 4t, 8h, 8w, 3]` from latents `[B, t, h, w, CHANNELS]`."""
        x_BTHWC = self.enter(latent_BTHWC)
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, cache)
        x_BTHWC = channels_to_blocks(self.up(x_BTHWC), STEP_TIME, STEP_SPACE)
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, cache)
        return channels_to_blocks(self.leave(x_BTHWC), PATCH_TIME, PATCH_SPACE)


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

    def forward(self, video_BCTHW: Tensor, noise_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction from a sample of the posterior, and the posterior's mean and log-variance."""
        mean_BCTHW, log_variance_BCTHW = self.encode(video_BCTHW)
        return self.decode(mean_BCTHW + (0.5 * log_variance_BCTHW).exp() * noise_BCTHW), mean_BCTHW, log_variance_BCTHW

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16)
