"""The network of the autoencoder `causal`: the linear autoencoder, and what convolutions add to it.

Frames are grouped as there: the first one alone, then fours. The convolutions see the first frame four times, so that all groups
are alike to them, and run at 1/4 of height and width and half the frames, then at the latents' own size. Space and time are
folded into channels on the way down and unfolded on the way up, group by group, so only the convolutions in time look back.

Shape suffixes: B videos, C channels, T H W frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.autoencoders._causal_layers import Block, Head, Past, SpaceConv, fold, unfold
from training.autoencoders._linear_blocks import from_blocks, load_weights, to_blocks
from training.autoencoders._linear_weights import FIRST_VALUES, SPACE_FACTOR, TIME_FACTOR

CHANNELS = 16
PATCH_TIME, PATCH_SPACE = 2, 4
"""Frames and pixels a side that are folded into channels at once."""
PATCH_VALUES = 3 * PATCH_TIME * PATCH_SPACE**2
STEP_TIME, STEP_SPACE = TIME_FACTOR // PATCH_TIME, SPACE_FACTOR // PATCH_SPACE
"""What is folded between the two sizes."""
LOG_VARIANCE = -6.0
"""Of the posterior before training: noise of a standard deviation of 0.05, where latents have about 1."""
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -20.0, 10.0


@dataclass(frozen=True)
class Shape:
    """How wide the network is and how many blocks it has, at 1/4 of the picture (`fine`) and at 1/8 (`coarse`)."""

    fine: int
    coarse: int
    encoder_fine: int
    encoder_coarse: int
    decoder_fine: int
    decoder_coarse: int

    @property
    def reach(self) -> int:
        """Latent cells beyond its own that a cell is computed from, or that a cell's pixels are, at most: 1 pixel a 3x3 convolution, at its scale."""
        encoder = self.encoder_fine * PATCH_SPACE + (self.encoder_coarse + 1) * SPACE_FACTOR
        decoder = (self.decoder_fine + 1) * PATCH_SPACE + (self.decoder_coarse + 1) * SPACE_FACTOR
        return -(-max(encoder, decoder) // SPACE_FACTOR)


PRESETS: Mapping[str, Shape] = {
    "tiny": Shape(16, 16, 1, 1, 1, 1),
    "small": Shape(128, 160, 2, 3, 4, 3),
    "large": Shape(256, 640, 3, 5, 5, 6),
}
"""tiny is for tests."""


class Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.enter = nn.Linear(PATCH_VALUES, shape.fine)
        self.fine = nn.ModuleList(Block(shape.fine) for _ in range(shape.encoder_fine))
        self.down = nn.Linear(STEP_TIME * STEP_SPACE**2 * shape.fine, shape.coarse)
        self.coarse = nn.ModuleList(Block(shape.coarse) for _ in range(shape.encoder_coarse))
        self.leave = Head(shape.coarse, 2 * CHANNELS)

    def forward(self, pixels_BTHWC: Tensor, past: Past | None = None) -> Tensor:
        """Whole groups `[B, 4t, H, W, 3]` to mean and log-variance `[B, t, H / 8, W / 8, 2 * CHANNELS]`."""
        x_BTHWC = self.enter(fold(pixels_BTHWC, PATCH_TIME, PATCH_SPACE))
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, past)
        x_BTHWC = self.down(fold(x_BTHWC, STEP_TIME, STEP_SPACE))
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, past)
        y_BTHWC: Tensor = self.leave(x_BTHWC)
        return y_BTHWC


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.enter = SpaceConv(CHANNELS, shape.coarse)
        self.coarse = nn.ModuleList(Block(shape.coarse) for _ in range(shape.decoder_coarse))
        self.up = nn.Linear(shape.coarse, STEP_TIME * STEP_SPACE**2 * shape.fine)
        self.fine = nn.ModuleList(Block(shape.fine) for _ in range(shape.decoder_fine))
        self.leave = Head(shape.fine, PATCH_VALUES)

    def forward(self, latent_BTHWC: Tensor, past: Past | None = None) -> Tensor:
        """`[B, t, h, w, CHANNELS]` to whole groups of pixels `[B, 4t, 8h, 8w, 3]`."""
        x_BTHWC = self.enter(latent_BTHWC)
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, past)
        x_BTHWC = unfold(self.up(x_BTHWC), STEP_TIME, STEP_SPACE)
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, past)
        return unfold(self.leave(x_BTHWC), PATCH_TIME, PATCH_SPACE)


class BlockTransform(nn.Module):
    """The linear autoencoder's map of blocks of pixels to latents, and back. Not trained: Adam's steps, as large for all weights, would undo it."""

    project: Tensor
    project_bias: Tensor
    restore: Tensor
    restore_bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], kind: str, row: int) -> None:
        super().__init__()
        basis_PC, mean_P, mean_C, std_C = (
            weights[f"{kind}.basis"],
            weights[f"{kind}.mean"],
            weights["mean"][row],
            weights["std"][row],
        )
        self.register_buffer("project", basis_PC.T / std_C[:, None])
        self.register_buffer("project_bias", -(mean_P @ basis_PC + mean_C) / std_C)
        self.register_buffer("restore", basis_PC * std_C)
        self.register_buffer("restore_bias", mean_P + basis_PC @ mean_C)
        self.frames = basis_PC.shape[0] // FIRST_VALUES

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """`[B, 3, T, H, W]` to `[B, T / frames, H / 8, W / 8, CHANNELS]`."""
        return F.linear(to_blocks(video_BCTHW, self.frames), self.project, self.project_bias)

    def decode(self, latent_BTHWC: Tensor) -> Tensor:
        return from_blocks(F.linear(latent_BTHWC, self.restore, self.restore_bias), self.frames)


class CausalNetwork(nn.Module):
    """Encoder, decoder and the linear maps beside them. Weights and inputs are fp32; the convolutions may compute in bfloat16.

    The linear maps are those of `linear16`, and the convolutions add nothing yet, so training starts at its quality and its
    latents, of unit variance. Where a video begins is passed in, since pieces of a stream look alike.
    """

    def __init__(self, shape: Shape, bf16: bool = False) -> None:
        super().__init__()
        self.shape, self.bf16 = shape, bf16
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        weights = load_weights(CHANNELS)
        self.first, self.group = BlockTransform(weights, "first", 0), BlockTransform(weights, "group", 1)

    def encode(self, video_BCTHW: Tensor, past: Past | None = None, begins: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, `[B, CHANNELS, t, h, w]` each, not normalised.

        A piece that `begins` a video has 1 + 4k frames, any other one 4k; it continues what left `past`.
        """
        straight, pixels = [], [video_BCTHW]
        if begins:
            first_BCTHW, video_BCTHW = video_BCTHW[:, :, :1], video_BCTHW[:, :, 1:]
            straight, pixels = (
                [self.first.encode(first_BCTHW)],
                [first_BCTHW.expand(-1, -1, TIME_FACTOR, -1, -1), video_BCTHW],
            )
        if video_BCTHW.shape[2]:
            straight.append(self.group.encode(video_BCTHW))
        with self._precision(video_BCTHW):
            added_BTHWC = self.encoder(torch.cat(pixels, dim=2).movedim(1, -1), past).float()
        mean_BTHWC, log_variance_BTHWC = added_BTHWC.chunk(2, dim=-1)
        log_variance_BTHWC = (log_variance_BTHWC + LOG_VARIANCE).clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)
        return (torch.cat(straight, dim=1) + mean_BTHWC).movedim(-1, 1), log_variance_BTHWC.movedim(-1, 1)

    def decode(self, latent_BCTHW: Tensor, past: Past | None = None, begins: bool = True) -> Tensor:
        """Pixels `[B, 3, T, H, W]`, T = 1 + 4 (t - 1) of a piece that `begins` a video, 4t of any other one."""
        latent_BTHWC = latent_BCTHW.movedim(1, -1)
        with self._precision(latent_BCTHW):
            added_BCTHW = self.decoder(latent_BTHWC, past).float().movedim(-1, 1)
        straight = []
        if begins:
            straight = [self.first.decode(latent_BTHWC[:, :1])]
            latent_BTHWC, added_BCTHW = latent_BTHWC[:, 1:], added_BCTHW[:, :, TIME_FACTOR - 1 :]
        if latent_BTHWC.shape[1]:
            straight.append(self.group.decode(latent_BTHWC))
        video_BCTHW: Tensor = torch.cat(straight, dim=2) + added_BCTHW
        return video_BCTHW

    def forward(self, video_BCTHW: Tensor, noise_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training needs: the reconstruction from a sample of the posterior, and the posterior's mean and log-variance."""
        mean_BCTHW, log_variance_BCTHW = self.encode(video_BCTHW)
        return self.decode(mean_BCTHW + (0.5 * log_variance_BCTHW).exp() * noise_BCTHW), mean_BCTHW, log_variance_BCTHW

    def card(self) -> dict[str, Any]:
        """The shape, as it stands in a file of weights."""
        return asdict(self.shape)

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16)
